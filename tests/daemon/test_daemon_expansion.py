"""Expansion: what a fact says about its object is told, replaced and withdrawn together with it."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from sqlmodel import col, delete, select

from daemon.answers import answer_of
from daemon.record import Reading, record_page
from sources import Cursor, Observation, Outcome, Page, Relation, Value, ValueKind, load_catalogue
from store.tables import Change, ChangeState, Cycle, Fact

if TYPE_CHECKING:
    from store import Database

START = datetime(2022, 1, 1, tzinfo=UTC)
RELATIONS = load_catalogue()
TWIN, SPOUSE, CAPITAL, CAPITAL_OF, LEADER, LEADER_OF = "P190", "P26", "P36", "P1376", "P6", "^P6"


def seen(revision: int, qid: str, pid: str, *values: str) -> Observation:
    """What a slot said at a revision; the label of Q5 is "L5"."""
    outcome = {0: Outcome.NONE, 1: Outcome.VALUE}.get(len(values), Outcome.SEVERAL)
    items = tuple(Value(ValueKind.ITEM, value, f"L{value[1:]}") for value in values)
    moment = START + timedelta(days=revision)
    return Observation(
        qid, f"L{qid[1:]}", pid, outcome, items, outcome.value, 100 + revision, moment, f"{qid}-{revision}"
    )


@pytest.fixture
def cycle_id(database: Database) -> int:
    with database.transaction() as session:
        cycle = Cycle()
        session.add(cycle)
    assert cycle.id is not None
    return cycle.id


def reading(cycle_id: int, relations: dict[str, Relation] = RELATIONS) -> Reading:
    return Reading(cycle_id, START + timedelta(days=100), START, relations)


def record(
    database: Database, cycle_id: int, *observations: Observation, relations: dict[str, Relation] = RELATIONS
) -> None:
    for one in observations:
        with database.transaction() as session:
            page = Page((one,), Cursor(one.modified, one.revision), 1)
            record_page(session, page, reading(cycle_id, relations))


def told(database: Database) -> dict[tuple[str, str], list[tuple[str, ...]]]:
    """Per slot, the new values of its changes that still wait (at most one) and of those before."""
    found: dict[tuple[str, str], list[tuple[str, ...]]] = {}
    with database.read() as session:
        for change in session.exec(select(Change).order_by(col(Change.id))):
            found.setdefault((change.qid, change.pid), []).append(tuple(v["id"] for v in change.new_values))
    return found


def waiting(database: Database) -> dict[tuple[str, str], tuple[str, ...]]:
    with database.read() as session:
        changes = session.exec(select(Change).where(Change.state == ChangeState.SETTLING)).all()
    found = {(change.qid, change.pid): tuple(v["id"] for v in change.new_values) for change in changes}
    assert len(found) == len(changes), "a slot waits with one change at most"
    return found


def test_a_symmetric_relation_is_told_from_both_ends(database: Database, cycle_id: int) -> None:
    record(database, cycle_id, seen(1, "Q1", SPOUSE, "Q2"))
    assert waiting(database) == {("Q1", SPOUSE): ("Q2",), ("Q2", SPOUSE): ("Q1",)}


def test_an_inverse_relation_has_its_own_wording(database: Database, cycle_id: int) -> None:
    record(database, cycle_id, seen(1, "Q1", CAPITAL, "Q2"), seen(1, "Q3", LEADER, "Q4"))
    assert waiting(database) == {
        ("Q1", CAPITAL): ("Q2",), ("Q2", CAPITAL_OF): ("Q1",), ("Q3", LEADER): ("Q4",), ("Q4", LEADER_OF): ("Q3",),
    }  # fmt: skip
    assert RELATIONS[LEADER_OF].prompt != RELATIONS[LEADER].prompt


def test_a_new_value_moves_the_other_end(database: Database, cycle_id: int) -> None:
    record(database, cycle_id, seen(0, "Q1", LEADER, "Q2"), seen(1, "Q1", LEADER, "Q3"))
    assert waiting(database) == {("Q1", LEADER): ("Q3",), ("Q2", LEADER_OF): (), ("Q3", LEADER_OF): ("Q1",)}


def test_what_ended_without_a_successor_ends_at_both_ends(database: Database, cycle_id: int) -> None:
    record(database, cycle_id, seen(1, "Q1", SPOUSE, "Q2"), seen(2, "Q1", SPOUSE))
    assert told(database) == {("Q1", SPOUSE): [("Q2",), ()], ("Q2", SPOUSE): [("Q1",), ()]}


def test_the_other_end_gathers_all_that_name_it(database: Database, cycle_id: int) -> None:
    record(database, cycle_id, seen(1, "Q10", TWIN, "Q5"), seen(1, "Q9", TWIN, "Q5", "Q6"), seen(2, "Q10", TWIN))
    assert told(database)["Q5", TWIN] == [("Q10",), ("Q9", "Q10"), ("Q9",)]
    assert told(database)["Q6", TWIN] == [("Q9",)]


def test_what_is_stated_about_the_other_end_wins(database: Database, cycle_id: int) -> None:
    record(database, cycle_id, seen(1, "Q2", SPOUSE, "Q7"), seen(2, "Q1", SPOUSE, "Q2"))
    assert waiting(database)["Q2", SPOUSE] == ("Q7",)
    record(database, cycle_id, seen(3, "Q8", SPOUSE, "Q9"), seen(4, "Q9", SPOUSE, "Q1"))
    assert waiting(database)["Q9", SPOUSE] == ("Q1",), "it is stated later, and then counts"


def test_what_was_stated_once_still_wins(database: Database, cycle_id: int) -> None:
    record(database, cycle_id, seen(1, "Q2", SPOUSE, "Q7"), seen(2, "Q2", SPOUSE), seen(3, "Q1", SPOUSE, "Q2"))
    assert told(database)["Q2", SPOUSE] == [("Q7",), ()]


def test_what_is_stated_at_the_baseline_wins_over_what_was_gathered(database: Database, cycle_id: int) -> None:
    """A first load that goes on page by page may meet the object's statement after the change that names it."""
    record(database, cycle_id, seen(1, "Q1", SPOUSE, "Q2"), seen(0, "Q2", SPOUSE, "Q7"))
    assert told(database)["Q2", SPOUSE] == [("Q1",), ("Q7",)]
    assert waiting(database)["Q2", SPOUSE] == ("Q7",)


def test_the_same_value_stated_afterwards_is_no_second_change(database: Database, cycle_id: int) -> None:
    record(database, cycle_id, seen(1, "Q1", SPOUSE, "Q2"), seen(2, "Q2", SPOUSE, "Q1"))
    assert told(database) == {("Q1", SPOUSE): [("Q2",)], ("Q2", SPOUSE): [("Q1",)]}
    record(database, cycle_id, seen(3, "Q1", SPOUSE, "Q3"))
    assert waiting(database)["Q2", SPOUSE] == ("Q1",), "from now on only its own statement counts"


def test_a_baseline_fact_is_gathered_with_a_later_one(database: Database, cycle_id: int) -> None:
    record(database, cycle_id, seen(0, "Q1", TWIN, "Q5"), seen(1, "Q2", TWIN, "Q5"))
    assert told(database) == {("Q2", TWIN): [("Q5",)], ("Q5", TWIN): [("Q1", "Q2")]}


def test_a_property_that_is_not_watched_states_nothing(database: Database, cycle_id: int) -> None:
    watched = {pid: relation for pid, relation in RELATIONS.items() if pid != CAPITAL_OF}
    record(database, cycle_id, seen(0, "Q2", CAPITAL_OF, "Q9"))
    record(database, cycle_id, seen(1, "Q1", CAPITAL, "Q2"), relations=watched)
    assert waiting(database)["Q2", CAPITAL_OF] == ("Q1",)


def test_two_properties_that_say_the_same_are_one_fact_at_the_other_end(database: Database, cycle_id: int) -> None:
    same = RELATIONS[LEADER].model_copy(update={"pid": "P35"})
    relations = RELATIONS | {"P35": same}
    record(database, cycle_id, seen(1, "Q1", LEADER, "Q2"), seen(2, "Q1", "P35", "Q2"), relations=relations)
    assert told(database)["Q2", LEADER_OF] == [("Q1",)]
    record(database, cycle_id, seen(3, "Q1", LEADER), relations=relations)
    assert told(database)["Q2", LEADER_OF] == [("Q1",)], "the other property still says so"
    record(database, cycle_id, seen(4, "Q1", "P35"), relations=relations)
    assert told(database)["Q2", LEADER_OF] == [("Q1",), ()]


def test_a_literal_has_no_other_end(database: Database, cycle_id: int) -> None:
    literal = Value(ValueKind.STRING, "Q2", "Q2")
    record(database, cycle_id, dataclasses.replace(seen(1, "Q1", LEADER, "Q2"), values=(literal,)))
    record(database, cycle_id, seen(2, "Q3", LEADER, "Q2"))
    assert told(database)["Q2", LEADER_OF] == [("Q3",)]


def test_an_expanded_change_names_its_origin_and_its_source(database: Database, cycle_id: int) -> None:
    record(database, cycle_id, seen(1, "Q1", CAPITAL, "Q2"))
    with database.read() as session:
        direct, expanded = session.exec(select(Change).order_by(col(Change.id))).all()
    assert (direct.origin_id, expanded.origin_id) == (None, direct.id)
    assert direct.group == expanded.group == direct.id
    assert (expanded.subject_label, expanded.new_values[0]["label"]) == ("L2", "L1")
    assert (expanded.revision, expanded.statement) == (direct.revision, direct.statement)


def test_a_fact_about_itself_is_told_once(database: Database, cycle_id: int) -> None:
    """Singapore is the capital of Singapore, in both properties at one revision."""
    record(database, cycle_id, seen(1, "Q1", CAPITAL, "Q1"), seen(1, "Q1", CAPITAL_OF, "Q1"))
    assert told(database) == {("Q1", CAPITAL): [("Q1",)], ("Q1", CAPITAL_OF): [("Q1",)]}
    record(database, cycle_id, seen(2, "Q1", CAPITAL, "Q3"), seen(2, "Q1", CAPITAL_OF, "Q4"))
    assert waiting(database)["Q1", CAPITAL_OF] == ("Q4",)


def test_a_transaction_that_fails_leaves_neither_end(database: Database, cycle_id: int) -> None:
    one = seen(1, "Q1", SPOUSE, "Q2")
    with pytest.raises(ZeroDivisionError), database.transaction() as session:
        record_page(session, Page((one,), Cursor(one.modified, one.revision), 1), reading(cycle_id))
        raise ZeroDivisionError
    assert told(database) == {}
    record(database, cycle_id, one)
    assert len(told(database)) == 2


SLOTS = st.tuples(
    st.sampled_from(["Q1", "Q2", "Q3"]), st.sampled_from([TWIN, CAPITAL, LEADER]),
    st.lists(st.sampled_from(["Q1", "Q2", "Q3", "Q4"]), max_size=3, unique=True),
)  # fmt: skip


@given(history=st.lists(SLOTS, min_size=1, max_size=12))
@examples(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_ends_agree_whatever_happened(
    database: Database, cycle_id: int, history: list[tuple[str, str, list[str]]]
) -> None:
    with database.transaction() as session:
        session.exec(delete(Change).where(col(Change.origin_id).is_not(None)))
        session.exec(delete(Change))
        session.exec(delete(Fact))
    pages = [seen(number, qid, pid, *values) for number, (qid, pid, values) in enumerate(history, 1)]
    record(database, cycle_id, *pages)
    before = told(database)
    record(database, cycle_id, *pages)
    assert told(database) == before, "read again, nothing changes"
    stated: dict[tuple[str, str], set[str]] = {}
    for qid, pid, values in history:
        stated[qid, pid] = set(values)
    last = {slot: set(values[-1]) for slot, values in before.items()}
    for (qid, pid), values in stated.items():
        opposite = RELATIONS[pid].opposite
        for value in values:
            if opposite is not None and (value, opposite) not in stated:
                assert qid in last[value, opposite], "what is said of a fact's object must be told"
    for (qid, pid), values in last.items():
        if (qid, pid) in stated:
            continue
        naming = {
            subject for (subject, other), objects in stated.items()
            if qid in objects and RELATIONS[other].opposite == pid
        }  # fmt: skip
        assert values == naming, "and nothing else"


def test_several_values_are_one_list(database: Database) -> None:
    values = [{"kind": "item", "id": f"Q{n}", "label": f"L{n}"} for n in range(1, 5)]
    assert answer_of(RELATIONS[TWIN], values[:1], 3) == "L1"
    assert answer_of(RELATIONS[TWIN], values[:2], 3) == "L1 and L2"
    assert answer_of(RELATIONS[TWIN], values[:3], 3) == "L1, L2 and L3"
    assert answer_of(RELATIONS[TWIN], values, 3) is None
    assert answer_of(RELATIONS[TWIN], [], 3) is None
    assert answer_of(RELATIONS[SPOUSE], values[:2], 3) is None, "one at a time: two contradict each other"
