"""A property that is watched for some items only."""

from __future__ import annotations

from datetime import timedelta

import pytest
from small_graph import REPLICATED, Graph, relation

from sources import BadAnswer, Cursor, WikidataSource, open_embedded
from sources.embedded import EmbeddedEngine
from sources.engine import Row

RELATIONS = (relation("P6"), relation("P35"))
COUNTRIES = {"P6": {"P31": ["Q100", "Q101"]}}


def world() -> Graph:
    """Q1 and Q2 are of the kinds asked for, Q3 is of another, Q4 of none, and of Q5 it is said wrongly."""
    graph = Graph()
    kinds = {1: ["wd:Q100"], 2: ["wd:Q999", "wd:Q101"], 3: ["wd:Q999"], 4: [], 5: []}
    for number, said in kinds.items():
        qid = f"Q{number}"
        graph.item(qid, f"Item {number}", 100 + number, f"2022-06-0{number}").says(qid, "P6", "wd:Q50")
        for kind in said:
            graph.says(qid, "P31", kind)
    graph.says("Q5", "P31", "wd:Q100", rank="Deprecated").says("Q4", "P35", "wd:Q50").says("Q2", "P17", "wd:Q7")
    graph.says("Q1", "P17", "wd:Q8")
    return graph.label("Q50", "Somebody")


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "graph.ttl"
    path.write_text(world().turtle(), encoding="utf-8")
    return path


def slots(pages) -> list[tuple[str, str]]:
    return [(o.qid, o.pid) for page in pages for o in page.observations]


EVERYTHING = [(f"Q{n}", pid) for n in range(1, 6) for pid in ("P6", "P35")]


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, EVERYTHING),
        ({"P35": {}}, EVERYTHING),
        (COUNTRIES, [("Q1", "P6"), ("Q1", "P35"), ("Q2", "P6"), ("Q2", "P35"), ("Q4", "P35")]),
        (COUNTRIES | {"P35": {"P31": ["Q100"]}}, [("Q1", "P6"), ("Q1", "P35"), ("Q2", "P6")]),
        ({"P6": {"P31": ["Q100", "Q101"], "P17": ["Q7"]}}, [("Q2", "P6"), ("Q2", "P35"), ("Q4", "P35")]),
    ],
)
def test_only_items_of_the_kinds_asked_for(file, filters, expected):
    assert slots(open_embedded(file, RELATIONS, filters=filters, page_size=2, chunk=2).pages(None)) == expected


def test_observing_again_keeps_to_the_kinds(file):
    source = open_embedded(file, RELATIONS, filters=COUNTRIES)
    observed = slots(source.observe(["Q1", "Q3", "Q4"], REPLICATED))
    assert observed == [("Q1", "P6"), ("Q1", "P35"), ("Q3", "P35"), ("Q4", "P35")]


def test_pages_of_filtered_items_move_the_cursor_over_what_is_not_watched(file):
    source = open_embedded(file, RELATIONS, filters={"P6": {"P31": ["Q12345"]}, "P35": {"P31": ["Q12345"]}})
    (page,) = source.pages(None)
    assert (page.items, page.cursor) == (0, Cursor(REPLICATED, 0))


class Odd:
    """An engine that forgets a variable of the answer about kinds."""

    name = "odd"

    def __init__(self, engine):
        self.engine = engine

    def select(self, query) -> list[Row]:
        return [{name: term for name, term in row.items() if name != "kind"} for row in self.engine.select(query)]


def test_an_answer_without_kinds_is_none(file):
    source = WikidataSource(Odd(EmbeddedEngine(file)), RELATIONS, filters=COUNTRIES, lag=timedelta(0))
    with pytest.raises(BadAnswer, match="a row lacks its kind"):
        list(source.pages(None))
