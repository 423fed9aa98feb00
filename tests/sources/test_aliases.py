"""Other names of items: which of them can stand for an item in an answer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_graph import Graph, relation

from sources import AnswerTooLarge, WikidataSource, labels, open_embedded
from sources.embedded import EmbeddedEngine
from sources.engine import LANG_STRING, Term, TermKind
from sources.queries import ENTITY, Query


def row(qid, name, language="en"):
    return {"item": Term(TermKind.IRI, ENTITY + qid), "label": Term(TermKind.LITERAL, name, LANG_STRING, language)}


def graph():
    world = Graph().item("Q1", "United States", 1, "2022-01-01T00:00:00").item("Q2", "Nobody", 2, "2022-01-02T00:00:00")
    for name in ("USA", "U.S.", "US", "🇺🇸", "U", "{{US}}", "see www.usa.gov", "the U.S. of A."):
        world.alias("Q1", name)
    return world.alias("Q1", "Estados Unidos", "es").alias("Q1", "America", "mul").alias("Q1", "USA", "mul")


@pytest.fixture
def snapshot(tmp_path):
    path = tmp_path / "world.ttl"
    path.write_text(graph().turtle(), encoding="utf-8")
    return path


def test_names_that_can_stand_in_a_prompt_in_the_configured_languages(snapshot):
    source = open_embedded(snapshot, [relation("P1")])
    found = source.aliases(["Q1", "Q2", "Q99", "Q1"], 10)
    assert found == {"Q1": ("U.S.", "US", "USA", "the U.S. of A.", "America"), "Q2": (), "Q99": ()}
    assert source.aliases([], 10) == {}
    strict = open_embedded(snapshot, [relation("P1")], languages=("es",), blocklist=["America"])
    assert strict.aliases(["Q1"], 10)["Q1"] == ("Estados Unidos",)


def test_they_are_bounded(snapshot):
    source = open_embedded(snapshot, [relation("P1")])
    assert source.aliases(["Q1"], 2)["Q1"] == ("U.S.", "US")


def test_an_item_with_too_many_is_left_out_and_the_others_are_read(snapshot):
    class Engine(EmbeddedEngine):
        def select(self, query: Query):
            if "altLabel" in query.text and "wd:Q2 " in query.text:
                raise AnswerTooLarge("too many")
            return super().select(query)

    source = WikidataSource(Engine(snapshot), [relation("P1")])
    assert source.aliases(["Q1", "Q2", "Q3"], 1) == {"Q1": ("U.S.",), "Q3": ()}


@given(names=st.lists(st.text(max_size=12), max_size=12), most=st.integers(0, 5))
def test_every_name_passes_the_rules_of_labels(names, most):
    def fault(name):
        return labels.fault(name, ("en",))

    rows = [row("Q1", name) for name in names]
    found = labels.choose_aliases(rows, ("en",), fault, most).get("Q1", ())
    assert found == labels.choose_aliases(rows[::-1], ("en",), fault, most).get("Q1", ())
    assert len(found) <= most
    assert all(fault(name) is None and sum(map(str.isalnum, name)) >= 2 for name in found)
    assert set(found) <= set(names)
