from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_graph import at

from sources import BadAnswer, Value, ValueKind
from sources.engine import LANG_STRING, XSD, XSD_STRING, Term, TermKind
from sources.queries import ENTITY, GENID, STATEMENT, WIKIBASE
from sources.statements import Rank, Snak, fold, parse_time


def iri(text: str) -> Term:
    return Term(TermKind.IRI, text)


def literal(text: str, datatype: str = XSD + "dateTime") -> Term:
    return Term(TermKind.LITERAL, text, datatype)


def row(name: str = "Q1-a", pid: str = "P35", rank: str = "NormalRank", **more: Term) -> dict[str, Term]:
    return {
        "item": iri(ENTITY + "Q1"),
        "property": literal(pid, XSD_STRING),
        "statement": iri(STATEMENT + name),
        "rank": iri(WIKIBASE + rank),
        **more,
    }


def only(rows):
    ((statement,),) = fold(rows).values()
    return statement


@given(st.sets(st.integers(1000, 3000), max_size=3), st.sets(st.integers(1000, 3000), max_size=3))
def test_the_cross_product_folds_back(starts, ends):
    def terms(name, years):
        return [{name: literal(f"{year}-01-01T00:00:00Z")} for year in years] or [{}]

    rows = [
        row(value=iri(ENTITY + "Q2"), **start, **end)
        for start, end in itertools.product(terms("start", starts), terms("end", ends))
    ]
    statement = only(rows)
    assert statement.starts == {at(f"{year}-01-01") for year in starts}
    assert statement.ends == {at(f"{year}-01-01") for year in ends}


def test_slots_are_kept_apart():
    found = fold([row("a"), row("b"), row("c", pid="P6")])
    assert {slot: [s.id for s in statements] for slot, statements in found.items()} == {
        ("Q1", "P35"): ["a", "b"],
        ("Q1", "P6"): ["c"],
    }


def test_a_statement_seen_with_two_values_stays_contradictory():
    ((*statements,),) = fold([row(value=iri(ENTITY + "Q2")), row(value=iri(ENTITY + "Q3"))]).values()
    assert {statement.value.id for statement in statements} == {"Q2", "Q3"}


@pytest.mark.parametrize(
    ("term", "snak", "value"),
    [
        (None, Snak.NOVALUE, None),
        (Term(TermKind.BNODE, "b0"), Snak.SOMEVALUE, None),
        (iri(GENID + "1234"), Snak.SOMEVALUE, None),
        (iri(ENTITY + "Q42"), Snak.VALUE, Value(ValueKind.ITEM, "Q42", "")),
        (
            iri("https://a.example/"),
            Snak.VALUE,
            Value(ValueKind.STRING, "https://a.example/", "https://a.example/"),
        ),
        (literal("Tirana", XSD_STRING), Snak.VALUE, Value(ValueKind.STRING, "Tirana", "Tirana")),
        (
            Term(TermKind.LITERAL, "Tiranë", LANG_STRING, "sq"),
            Snak.VALUE,
            Value(ValueKind.STRING, "Tiranë", "Tiranë"),
        ),
        (
            literal("+1234500.0", XSD + "decimal"),
            Snak.VALUE,
            Value(ValueKind.QUANTITY, "1234500", "1,234,500"),
        ),
        (literal("-0.50", XSD + "decimal"), Snak.VALUE, Value(ValueKind.QUANTITY, "-0.5", "-0.5")),
        (literal("-0", XSD + "decimal"), Snak.VALUE, Value(ValueKind.QUANTITY, "0", "0")),
        (literal("1E3", XSD + "double"), Snak.VALUE, Value(ValueKind.QUANTITY, "1000", "1,000")),
        (literal("1E999999", XSD + "double"), Snak.VALUE, Value(ValueKind.STRING, "1E999999", "1E999999")),
        (literal("NaN", XSD + "double"), Snak.VALUE, Value(ValueKind.STRING, "NaN", "NaN")),
        (literal("many", XSD + "decimal"), Snak.VALUE, Value(ValueKind.STRING, "many", "many")),
        (
            literal("2022-07-24T00:00:00Z"),
            Snak.VALUE,
            Value(ValueKind.TIME, "2022-07-24T00:00:00Z", "24 July 2022"),
        ),
        (literal("1912-01-01T00:00:00Z"), Snak.VALUE, Value(ValueKind.TIME, "1912-01-01T00:00:00Z", "1912")),
        (
            literal("-0044-03-15T00:00:00Z"),
            Snak.VALUE,
            Value(ValueKind.TIME, "-0044-03-15T00:00:00Z", "15 March 45 BC"),
        ),
    ],
)
def test_values(term, snak, value):
    statement = only([row() if term is None else row(value=term)])
    assert (statement.snak, statement.value) == (snak, value)


def test_a_long_number_keeps_its_digits():
    digits = "1234567890123456789012345678901234567890"
    assert only([row(value=literal(digits, XSD + "decimal"))]).value.id == digits


def test_ranks_and_successors():
    statement = only([row(rank="DeprecatedRank", successor=iri(ENTITY + "Q7"), value=iri(ENTITY + "Q2"))])
    assert statement.rank is Rank.DEPRECATED
    assert statement.successors == {"Q7"}


def test_a_qualifier_that_is_no_date_is_unknown():
    odd = only([row(start=Term(TermKind.BNODE, "b"), end=iri(GENID + "1"), point=literal("2022-02-30T00:00:00Z"))])
    assert odd.starts == odd.ends == odd.points == {None}


@pytest.mark.parametrize(
    "broken",
    [
        row(rank="BestRank"),
        {**row(), "item": iri("http://example.org/x")},
        {key: term for key, term in row().items() if key != "statement"},
    ],
)
def test_rows_of_another_shape_are_refused(broken):
    with pytest.raises(BadAnswer, match="check that the data is Wikidata's"):
        fold([broken])


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2022-07-24T10:00:00Z", at("2022-07-24T10:00:00")),
        ("2022-07-24T10:00:00", at("2022-07-24T10:00:00")),
        ("2022-07-24T10:00:00+02:00", at("2022-07-24T08:00:00")),
        ("+2022-07-24T10:00:00.5Z", at("2022-07-24T10:00:00.500000")),
        ("-0044-03-15T00:00:00Z", at("0001-01-01")),
        ("13798000000-01-01T00:00:00Z", at("9999-12-31T23:59:59.999999")),
        ("2022-02-30T00:00:00Z", None),
        ("soon", None),
        ("", None),
    ],
)
def test_times(text, moment):
    assert parse_time(text) == moment


@given(st.text())
def test_any_text_is_a_time_or_none(text):
    moment = parse_time(text)
    assert moment is None or moment.utcoffset().total_seconds() == 0
