"""The queries mean the same to an engine that shares no code with Oxigraph."""

from __future__ import annotations

from datetime import timedelta

import rdflib
from small_graph import ALBANIA_RELATIONS, albania

from sources import WikidataSource, open_embedded
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
