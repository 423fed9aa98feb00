"""The queries mean the same to an engine that shares no code with Oxigraph."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest
import rdflib
from small_graph import ALBANIA_FILTERS, ALBANIA_RELATIONS, REPLICATED, albania, albania_in_kinds

from sources import Stamps, WikidataSource, open_embedded
from sources.engine import LANG_STRING, XSD_STRING, Term, TermKind


class Rdflib:
    name = "rdflib"

    def __init__(self, turtle):
        self.graph = rdflib.Graph()
        self.graph.parse(data=turtle, format="turtle")

    def select(self, query):
        answer = self.graph.query(query.text)
        assert tuple(map(str, answer.vars)) == query.variables
        return [{name: term(value) for name, value in row.asdict().items()} for row in answer]


def term(node):
    match node:
        case rdflib.URIRef():
            return Term(TermKind.IRI, str(node))
        case rdflib.BNode():
            return Term(TermKind.BNODE, str(node))
        case rdflib.Literal():
            language = (node.language or "").lower()
            implied = LANG_STRING if language else XSD_STRING
            return Term(TermKind.LITERAL, str(node), str(node.datatype or implied), language)


def test_the_same_observations(tmp_path, monkeypatch):
    # rdflib would rewrite "2793592.50" and the like in its own form.
    monkeypatch.setattr(rdflib, "NORMALIZE_LITERALS", False)
    path = tmp_path / "albania.ttl"
    path.write_text(albania().turtle(), encoding="utf-8")
    here = open_embedded(path, ALBANIA_RELATIONS, page_size=2)
    there = WikidataSource(
        Rdflib(albania().turtle()),
        ALBANIA_RELATIONS,
        page_size=2,
        overlap=timedelta(0),
        lag=timedelta(0),
    )
    expected = list(here.pages(None))
    assert list(there.pages(None)) == expected
    assert list(there.pages(expected[0].cursor)) == list(here.pages(expected[0].cursor)) != []


ASKED = ["Q222", "Q99", "Q8", "Q41", "Q403"]


@pytest.mark.parametrize("chunk", [1, 2, 200])
@pytest.mark.parametrize("filters", [{}, ALBANIA_FILTERS])
@pytest.mark.parametrize("stamps", Stamps)
def test_the_same_answers_about_items_asked_for(tmp_path, monkeypatch, chunk, filters, stamps):
    monkeypatch.setattr(rdflib, "NORMALIZE_LITERALS", False)
    graph = (
        albania_in_kinds().alias("Q222", "Republic of Albania").alias("Q222", "Shqip\u00ebria", "sq").alias("Q8", "RKS")
    )
    if stamps is Stamps.DOCUMENT:
        graph.lines = [
            re.sub(r"^wd:(Q\d+) schema:version", r"wdata:\1 schema:about wd:\1 ; schema:version", line)
            for line in graph.lines
        ]
    path = tmp_path / "albania.ttl"
    path.write_text(graph.turtle(), encoding="utf-8")
    options = {"chunk": chunk, "filters": filters, "overlap": timedelta(0), "lag": timedelta(0), "stamps": stamps}
    here = open_embedded(path, ALBANIA_RELATIONS, **options)
    there = WikidataSource(Rdflib(graph.turtle()), ALBANIA_RELATIONS, **options)
    states = [(standing.state.value, standing.revision) for standing in here.standing(ASKED)]
    assert states == [("present", 1700), ("absent", 0), ("redirected", 0), ("present", 1601), ("present", 1800)]
    assert list(there.standing(ASKED)) == list(here.standing(ASKED))
    observed = list(here.observe(ASKED, REPLICATED))
    assert list(there.observe(ASKED, REPLICATED)) == observed
    labels = {(o.qid, o.pid): [value.label for value in o.values] for page in observed for o in page.observations}
    assert labels["Q41", "P571"] == ["1830"]
    assert labels["Q403", "P571"] == ["November 1817"]
    assert {o.qid: o.sitelinks for page in observed for o in page.observations} == {
        "Q222": 312,
        "Q41": None,
        "Q403": None,
    }
    watched = [slot in labels for slot in (("Q403", "P6"), ("Q41", "P6"), ("Q403", "P47"))]
    assert watched == [True, not filters, not filters]
    assert list(there.pages(None)) == list(here.pages(None))
    assert there.names(ASKED) == here.names(ASKED) != {}
    assert there.aliases(ASKED, 5) == here.aliases(ASKED, 5)
    assert here.aliases(ASKED, 5)["Q222"] == ("Republic of Albania",)
