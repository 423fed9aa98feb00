"""What an engine cannot search in one go is searched in pieces, and nothing is lost or read twice."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_graph import REPLICATED, Graph, at, relation

from sources import AnswerTooLarge, Cursor, QueryTimeout, WikidataSource
from sources.embedded import EmbeddedEngine

P35 = (relation("P35"),)
ZERO = {"overlap": timedelta(0), "lag": timedelta(0)}
BOUND = re.compile(r'FILTER\(\?modified (>=|<=) "([^"]+)"')
LIMIT = re.compile(r"LIMIT (\d+)")


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    """Forty items over two years, in bursts."""
    graph = Graph()
    for n in range(1, 41):
        moment = at("2021-01-01") + timedelta(days=17 * (n // 3), seconds=n % 2)
        graph.item(f"Q{n}", f"Item {n}", 1000 - n, f"{moment:%Y-%m-%dT%H:%M:%S}").says(f"Q{n}", "P35", "wd:Q1")
    path = tmp_path_factory.mktemp("split") / "graph.ttl"
    path.write_text(graph.turtle(), encoding="utf-8")
    return EmbeddedEngine(path)


class Weak:
    """An engine that runs out of time over long stretches of time or long pages of modifications."""

    name = "weak"

    def __init__(self, engine, *, longest=timedelta.max, most=10**9, error=QueryTimeout):
        self.engine, self.longest, self.most, self.error, self.refused = engine, longest, most, error, 0

    def select(self, query):
        if "ORDER BY" in query.text:
            bounds = {sign: datetime.fromisoformat(time) for sign, time in BOUND.findall(query.text)}
            stretch = bounds["<="] - bounds.get(">=", datetime(2012, 10, 29, tzinfo=UTC))
            (limit,) = map(int, LIMIT.findall(query.text))
            if stretch > self.longest or limit > self.most:
                self.refused += 1
                raise self.error("ask for less")
        return self.engine.select(query)


def read(engine, cursor=None, **options):
    pages = list(WikidataSource(engine, P35, **(ZERO | options)).pages(cursor))
    return pages, [o for page in pages for o in page.observations]


@settings(max_examples=40, deadline=None)
@given(
    longest=st.integers(500, 50_000).map(lambda hours: timedelta(hours=hours)),
    most=st.integers(8, 70),
    page_size=st.integers(1, 64),
    start=st.none() | st.integers(0, 700).map(lambda days: Cursor(at("2021-01-01") + timedelta(days=days), 500)),
    error=st.sampled_from([QueryTimeout, AnswerTooLarge]),
)
def test_a_weak_engine_gives_the_same_in_smaller_pieces(engine, longest, most, page_size, start, error):
    _, expected = read(engine, start)
    weak = Weak(engine, longest=longest, most=most, error=error)
    pages, observed = read(weak, start, page_size=page_size)
    assert observed == expected
    cursors = [page.cursor for page in pages]
    assert cursors == sorted(set(cursors))
    assert cursors[-1] == Cursor(REPLICATED, 0)


def test_pages_shrink_before_time_does_and_time_grows_again(engine):
    weak = Weak(engine, most=100)
    pages, _ = read(weak, page_size=500)
    assert (weak.refused, [page.items for page in pages]) == (3, [40, 0])
    weak = Weak(engine, longest=timedelta(days=300))
    read(weak, page_size=1)
    assert weak.refused < 40


def test_a_stretch_that_passed_is_not_searched_again_after_a_failure(engine):
    weak = Weak(engine, longest=timedelta(days=300))
    feed = WikidataSource(weak, P35, **ZERO).pages(None)
    first = next(feed)
    assert first.items == 0, "the years before the first modification"
    _, expected = read(engine)
    assert read(engine, first.cursor)[1] == expected


@pytest.mark.parametrize("seconds", [1, 2, 3, 7])
def test_what_lies_on_the_border_of_two_stretches_comes_once(tmp_path, seconds):
    graph = Graph(replicated=at("2022-01-01T00:01:00"))
    for n in range(1, 61):
        graph.item(f"Q{n}", f"Item {n}", 1000 - n, f"2022-01-01T00:00:{n // 2:02d}").says(f"Q{n}", "P35", "wd:Q1")
    path = tmp_path / "graph.ttl"
    path.write_text(graph.turtle(), encoding="utf-8")
    weak = Weak(EmbeddedEngine(path), longest=timedelta(seconds=seconds))
    _, observed = read(weak, Cursor(at("2022-01-01"), 0))
    assert [o.revision for o in observed] == sorted(
        (1000 - n for n in range(1, 61)), key=lambda r: ((1000 - r) // 2, r)
    )


def test_an_engine_that_cannot_search_a_second_is_not_asked_for_ever(engine):
    weak = Weak(engine, most=0)
    with pytest.raises(QueryTimeout):
        read(weak, page_size=500)
    assert weak.refused < 50
