"""What becomes of items that were read before: the questions that the feed does not answer."""

from __future__ import annotations

from datetime import timedelta

import pytest
from small_graph import REPLICATED, Graph, at, relation

from sources import (
    BadAnswer,
    Failed,
    Outcome,
    QueryTimeout,
    Stamps,
    Standing,
    StandingState,
    WikidataSource,
)
from sources.embedded import EmbeddedEngine
from sources.engine import Term, TermKind
from sources.queries import ENTITY

P35 = (relation("P35"),)
ZERO = {"overlap": timedelta(0), "lag": timedelta(0)}


def world() -> Graph:
    graph = Graph()
    for number in range(1, 7):
        graph.item(f"Q{number}", f"Item {number}", 100 + number, f"2022-06-0{number}")
        graph.says(f"Q{number}", "P35", "wd:Q50")
    return graph.label("Q50", "Somebody").label("Q51", "{}").merged("Q7", "Q1")


@pytest.fixture
def engine(tmp_path):
    def make(graph=None):
        path = tmp_path / "graph.ttl"
        path.write_text((graph or world()).turtle(), encoding="utf-8")
        return EmbeddedEngine(path)

    return make


@pytest.fixture
def source(engine):
    def make(graph=None, **options):
        return WikidataSource(engine(graph), P35, **(ZERO | options))

    return make


def present(number: int) -> Standing:
    return Standing(f"Q{number}", StandingState.PRESENT, 100 + number, at(f"2022-06-0{number}"), "")


def absent(qid: str) -> Standing:
    return Standing(qid, StandingState.ABSENT, 0, None, "")


@pytest.mark.parametrize("chunk", [2, 3, 200])
def test_standings_come_one_per_item_in_the_order_asked_for(source, chunk):
    merged = Standing("Q7", StandingState.REDIRECTED, 0, None, "Q1")
    asked = ["Q6", "Q99", "Q7", "Q1", "Q6"]
    assert list(source(chunk=chunk).standing(asked)) == [present(6), absent("Q99"), merged, present(1), present(6)]
    assert list(source(chunk=chunk).standing([])) == []


def test_an_item_merged_and_present_counts_as_merged_and_two_revisions_as_the_newer(source):
    graph = world().merged("Q2", "Q1").item("Q3", None, 90, "2022-01-01")
    two, three = source(graph).standing(["Q2", "Q3"])
    assert (two.state, two.target, two.revision, two.modified) == (StandingState.REDIRECTED, "Q1", 0, None)
    assert three == present(3)


def test_one_absence_is_believed_and_that_of_all_is_not(source):
    assert list(source().standing(["Q99"])) == [absent("Q99")]
    assert list(source(chunk=2).standing(["Q1", "Q2", "Q99"]))[2] == absent("Q99")
    with pytest.raises(BadAnswer, match="empty answer for 2 items that exist"):
        list(source().standing(["Q98", "Q99"]))


def test_stamps_on_the_document(source):
    graph = Graph().says("Q1", "P35", "wd:Q1")
    graph.lines.append(
        'wdata:Q1 schema:about wd:Q1 ; schema:version 5 ; schema:dateModified "2022-01-01T00:00:00Z"^^xsd:dateTime .'
    )
    (standing,) = source(graph, stamps=Stamps.DOCUMENT).standing(["Q1"])
    assert standing == Standing("Q1", StandingState.PRESENT, 5, at("2022-01-01"), "")
    (page,) = source(graph, stamps=Stamps.DOCUMENT).observe(["Q1"], REPLICATED)
    assert page.observations[0].revision == 5


@pytest.mark.parametrize("line", ['wd:Q1 schema:version "new" .', "wd:Q1 owl:sameAs wd:P2 ."])
def test_standings_of_the_wrong_shape(source, line):
    graph = Graph()
    graph.lines += ['wd:Q1 schema:dateModified "2022-01-01T00:00:00Z"^^xsd:dateTime .', line]
    with pytest.raises(BadAnswer, match="standing of the wrong shape"):
        list(source(graph).standing(["Q1"]))


@pytest.mark.parametrize(("page_size", "chunk"), [(1, 200), (2, 1), (4, 3), (500, 200)])
def test_observing_again_gives_what_the_feed_gave(source, page_size, chunk):
    feed = {o.qid: o for page in source().pages(None) for o in page.observations}
    pages = list(source(page_size=page_size, chunk=chunk).observe(["Q5", "Q99", "Q7", "Q1", "Q5"], REPLICATED))
    assert [o for page in pages for o in page.observations] == [feed["Q5"], feed["Q1"]]
    assert {page.cursor for page in pages} == {None}
    assert sum(page.items for page in pages) == 2


def test_an_item_that_lost_its_last_statement_says_so(source):
    graph = Graph().item("Q1", "One", 7, "2022-12-01")
    (page,) = source(graph).observe(["Q1"], REPLICATED)
    assert [(o.outcome, o.revision, o.subject_label) for o in page.observations] == [(Outcome.NONE, 7, "One")]


def test_the_time_given_decides_what_has_ended(source):
    graph = Graph().item("Q1", "One", 7, "2022-01-01").label("Q2", "Two")
    graph.says("Q1", "P35", "wd:Q2", P582='"2022-06-01T00:00:00Z"^^xsd:dateTime')
    outcomes = [
        page.observations[0].outcome
        for day in ("2022-05-31", "2022-06-01")
        for page in source(graph).observe(["Q1"], at(day))
    ]
    assert outcomes == [Outcome.VALUE, Outcome.NONE]


def test_names_that_can_be_used(source):
    assert source().names(["Q50", "Q51", "Q99", "Q1"]) == {"Q50": "Somebody", "Q1": "Item 1"}
    assert source(blocklist=["body"]).names(["Q50"]) == {}
    assert source().names([]) == {}


class Poisoned:
    """An engine that runs out of time over some items, for all questions or those with a certain word."""

    name = "poisoned"

    def __init__(self, engine, *items, word=""):
        self.engine, self.items, self.word, self.refused = engine, items, word, 0

    def select(self, query):
        asked = query.text.replace("}", " ").split()
        if self.word in query.text and any(f"wd:{item}" in asked for item in self.items):
            self.refused += 1
            raise QueryTimeout("too much")
        return self.engine.select(query)


@pytest.mark.parametrize("word", ["owl:sameAs ?target", "wikibase:rank", "rdfs:label"])
def test_an_item_that_fails_alone_does_not_hold_up_the_others(engine, word):
    source = WikidataSource(Poisoned(engine(), "Q4", word=word), P35, chunk=5, **ZERO)
    (page,) = source.observe([f"Q{n}" for n in range(1, 7)], REPLICATED)
    assert page.failed == (Failed("Q4", "too much"),)
    assert page.items == 6
    assert [o.qid for o in page.observations] == ["Q1", "Q2", "Q3", "Q5", "Q6"]
    if word == "owl:sameAs ?target":
        with pytest.raises(QueryTimeout):
            list(source.standing(["Q4", "Q1"]))
    else:
        page, *_ = source.pages(None)
        assert page.failed == (Failed("Q4", "too much"),)
        assert [o.qid for o in page.observations] == ["Q1", "Q2", "Q3", "Q5", "Q6"]


def test_a_value_without_an_answer_about_its_label_fails_its_subjects(engine):
    source = WikidataSource(Poisoned(engine(), "Q50", word="rdfs:label"), P35, **ZERO)
    (page,) = source.observe(["Q1", "Q2"], REPLICATED)
    assert [failed.qid for failed in page.failed] == ["Q1", "Q2"]
    assert page.observations == ()
    assert source.names(["Q50", "Q1"]) == {"Q1": "Item 1"}


class Stranger:
    """An engine that slips a row about another item into answers with a certain variable."""

    name = "stranger"

    def __init__(self, engine, variable):
        self.engine, self.variable = engine, variable

    def select(self, query):
        rows = self.engine.select(query)
        if self.variable in query.variables:
            rows = [*rows, rows[0] | {"item": Term(TermKind.IRI, ENTITY + "Q9")}]
        return rows


@pytest.mark.parametrize("variable", ["target", "rank", "label"])
def test_rows_about_items_not_asked_for_are_not_believed(engine, variable):
    source = WikidataSource(Stranger(engine(), variable), P35, **ZERO)
    with pytest.raises(BadAnswer, match="'Q9', which was not asked for"):
        list(source.observe(["Q1", "Q2"], REPLICATED))
