from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_graph import at

from sources import Outcome, Value, ValueKind
from sources.resolver import Resolution, resolve
from sources.statements import Rank, Snak, Statement

NOW = at("2022-12-31")
MOMENTS = (at("1990-01-01"), at("2010-05-01"), at("2020-01-01"), NOW, at("2023-01-01"), at("2050-01-01"))


def item(number: int) -> Value:
    return Value(ValueKind.ITEM, f"Q{number}", "")


def says(name: str, number: int = 1, rank: Rank = Rank.NORMAL, **qualifiers: object) -> Statement:
    sets = {key: frozenset(value if isinstance(value, list) else [value]) for key, value in qualifiers.items()}
    return Statement(name, rank, Snak.VALUE, item(number), **sets)


def outcome(*statements: Statement, multi_valued: bool = False) -> tuple[Outcome, list[str]]:
    found = resolve(statements, multi_valued=multi_valued, now=NOW)
    return found.outcome, [value.id for value in found.values]


def test_no_statement():
    assert resolve((), multi_valued=False, now=NOW) == Resolution(Outcome.NONE, (), "no statement", "")


def test_one_value_with_its_statement():
    found = resolve((says("Q9-a", 5),), multi_valued=False, now=NOW)
    assert (found.outcome, found.values, found.statement) == (Outcome.VALUE, (item(5),), "Q9-a")


@pytest.mark.parametrize(
    ("statement", "word"),
    [
        (says("a", rank=Rank.DEPRECATED), "1 deprecated"),
        (says("a", ends=at("2020-01-01")), "1 ended"),
        (says("a", ends=NOW), "1 ended"),
        (says("a", ends=[None]), "1 ended"),
        (says("a", ends=[None, at("2050-01-01")]), "1 ended"),
        (says("a", starts=at("2023-01-01")), "1 not begun"),
        (says("a", points=at("2023-01-01")), "1 not begun"),
    ],
)
def test_what_is_not_current(statement, word):
    found = resolve((statement,), multi_valued=False, now=NOW)
    assert found.outcome is Outcome.NONE
    assert word in found.reason


@pytest.mark.parametrize(
    "statement",
    [
        says("a", ends=at("2050-01-01")),
        says("a", starts=[None]),
        says("a", starts=NOW),
        says("a", points=at("1990-01-01")),
        says("a", starts=[at("1990-01-01"), at("2020-01-01")], ends=at("2010-05-01")),
    ],
    ids=["end to come", "start unknown", "starts now", "point in the past", "second term runs"],
)
def test_what_is_current(statement):
    assert outcome(statement) == (Outcome.VALUE, ["Q1"])


def test_a_second_term_that_has_not_begun_does_not_revive_the_first():
    assert outcome(says("a", starts=[at("1990-01-01"), at("2050-01-01")], ends=at("2020-01-01")))[0] is Outcome.NONE


def test_preferred_wins_unless_it_has_ended():
    assert outcome(says("a", 1), says("b", 2, Rank.PREFERRED)) == (Outcome.VALUE, ["Q2"])
    stale = says("b", 2, Rank.PREFERRED, ends=at("2020-01-01"))
    assert outcome(says("a", 1), stale) == (Outcome.VALUE, ["Q1"])


def test_the_same_value_twice_is_one_value():
    assert outcome(says("b", 1), says("a", 1)) == (Outcome.VALUE, ["Q1"])


def test_several_values_of_a_multi_valued_property_in_order_of_their_number():
    found = resolve((says("b", 10), says("a", 9), says("c", 10)), multi_valued=True, now=NOW)
    assert found.outcome is Outcome.SEVERAL
    assert [value.id for value in found.values] == ["Q9", "Q10"]
    assert found.statement == "a b"


def test_several_values_of_a_single_valued_property_are_ambiguous_and_named():
    found = resolve(tuple(says(str(n), n) for n in range(1, 9)), multi_valued=False, now=NOW)
    assert found.outcome is Outcome.AMBIGUOUS
    assert "Q1, Q2" in found.reason
    assert "and 3 more" in found.reason


def test_a_later_start_alone_decides_nothing():
    france, urgell = says("a", 1, starts=at("2010-05-01")), says("b", 2, starts=at("1990-01-01"))
    assert outcome(france, urgell) == (Outcome.AMBIGUOUS, [])


def test_a_chain_of_successors_in_the_order_of_starts_decides():
    chain = (
        says("a", 1, starts=at("1990-01-01"), successors="Q2"),
        says("b", 2, starts=at("2010-05-01"), successors="Q3"),
        says("c", 3, starts=at("2020-01-01")),
    )
    found = resolve(chain, multi_valued=False, now=NOW)
    assert (found.outcome, found.values, found.statement) == (Outcome.VALUE, (item(3),), "c")


@pytest.mark.parametrize(
    "chain",
    [
        (says("a", 1, starts=at("1990-01-01"), successors="Q9"), says("b", 2, starts=at("2020-01-01"))),
        (says("a", 1, successors="Q2"), says("b", 2, starts=at("2020-01-01"))),
        (says("a", 1, starts=NOW, successors="Q2"), says("b", 2, starts=NOW)),
        (says("a", 1, starts=at("2020-01-01"), successors="Q2"), says("b", 2, starts=at("1990-01-01"))),
        (
            says("a", 1, Rank.PREFERRED, starts=at("1990-01-01"), successors="Q2"),
            says("b", 2, Rank.PREFERRED, starts=at("2020-01-01")),
        ),
        (
            says("a", 1, starts=at("1990-01-01"), successors="Q2"),
            says("b", 2, starts=at("2020-01-01"), successors="Q1"),
        ),
    ],
    ids=["successor elsewhere", "start missing", "same start", "against the starts", "preferred", "circle"],
)
def test_a_chain_in_doubt_stays_ambiguous(chain):
    assert outcome(*chain) == (Outcome.AMBIGUOUS, [])


def test_unknown_and_no_value():
    some = Statement("a", Rank.NORMAL, Snak.SOMEVALUE, None)
    no = Statement("b", Rank.NORMAL, Snak.NOVALUE, None)
    assert outcome(some) == (Outcome.SOMEVALUE, [])
    assert outcome(no) == (Outcome.NOVALUE, [])
    for mixed in ((some, no), (some, says("c")), (no, says("c")), (some, says("c"), says("d", 2))):
        assert outcome(*mixed, multi_valued=True) == (Outcome.AMBIGUOUS, [])


moments = st.frozensets(st.sampled_from((*MOMENTS, None)), max_size=2)
snaks = st.one_of(
    st.sampled_from([(Snak.SOMEVALUE, None), (Snak.NOVALUE, None)]),
    st.integers(1, 4).map(lambda number: (Snak.VALUE, item(number))),
)


@st.composite
def slots(draw: st.DrawFn) -> list[Statement]:
    return [
        Statement(
            f"Q9-{n}",
            draw(st.sampled_from(Rank)),
            *draw(snaks),
            starts=draw(moments),
            ends=draw(moments),
            points=draw(moments),
            successors=draw(st.frozensets(st.sampled_from(["Q1", "Q2", "Q3", "Q4"]), max_size=2)),
        )
        for n in range(draw(st.integers(0, 5)))
    ]


def answer(statements: list[Statement], *, multi_valued: bool) -> tuple[object, ...]:
    found = resolve(statements, multi_valued=multi_valued, now=NOW)
    return found.outcome, found.values, found.statement


@given(slots(), st.randoms(use_true_random=False), st.booleans())
def test_order_does_not_matter(statements, random, multi_valued):
    shuffled = random.sample(statements, len(statements))
    assert resolve(shuffled, multi_valued=multi_valued, now=NOW) == resolve(
        statements, multi_valued=multi_valued, now=NOW
    )


@given(slots(), slots(), st.booleans())
def test_what_does_not_count_changes_nothing(statements, extra, multi_valued):
    before = answer(statements, multi_valued=multi_valued)
    for number, each in enumerate(extra):
        for change in (
            {"rank": Rank.DEPRECATED},
            {"ends": frozenset({at("2020-06-01")}), "starts": frozenset({at("1990-01-01")})},
            {"ends": frozenset({None})},
            {"starts": frozenset({NOW + timedelta(days=1)}), "ends": frozenset()},
            {"points": frozenset({NOW + timedelta(days=1)}), "ends": frozenset()},
        ):
            fields = {name: getattr(each, name) for name in Statement.__slots__} | change
            more = Statement(**(fields | {"id": f"Q9-extra{number}"}))
            assert answer([*statements, more], multi_valued=multi_valued) == before


@given(slots(), st.booleans())
def test_values_fit_the_outcome(statements, multi_valued):
    found = resolve(statements, multi_valued=multi_valued, now=NOW)
    stated = {statement.value for statement in statements if statement.rank is not Rank.DEPRECATED}
    assert set(found.values) <= stated
    assert len(found.statement.split()) == len(found.values) == len(set(found.values))
    match found.outcome:
        case Outcome.VALUE:
            assert len(found.values) == 1
        case Outcome.SEVERAL:
            assert multi_valued
            assert len(found.values) > 1
        case _:
            assert found.values == ()
    assert found.reason


@given(slots(), st.booleans())
def test_one_current_preferred_statement_decides(statements, multi_valued):
    others = [statement for statement in statements if statement.rank is not Rank.PREFERRED]
    chosen = says("Q9-chosen", 7, Rank.PREFERRED)
    assert answer([*others, chosen], multi_valued=multi_valued) == (Outcome.VALUE, (item(7),), "Q9-chosen")


@given(slots())
def test_a_single_valued_property_never_guesses_between_undated_values(statements):
    undated = [Statement(s.id, s.rank, s.snak, s.value, successors=s.successors) for s in statements]
    found = resolve(undated, multi_valued=False, now=NOW)
    ranks = {s.rank for s in undated} - {Rank.DEPRECATED}
    best = Rank.PREFERRED if Rank.PREFERRED in ranks else Rank.NORMAL
    said = {(s.snak, s.value) for s in undated if s.rank is best}
    assert (found.outcome is Outcome.AMBIGUOUS) == (len(said) > 1)
