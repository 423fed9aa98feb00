from __future__ import annotations

from datetime import datetime

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlmodel import Session, col, select

from store import Database
from store.changes import OPEN, newest_change, record_change, supersede_overtaken, values_left
from store.tables import Change, ChangeState, Cycle, Quarantine, Values

PENDING, SUPERSEDED = ChangeState.PENDING, ChangeState.SUPERSEDED


def change(
    session: Session,
    now: datetime,
    qid: str = "Q1",
    pid: str = "P6",
    *,
    old: Values | None = None,
    new: Values | None = None,
) -> Change:
    cycle = Cycle()
    session.add(cycle)
    session.flush()
    revision = len(session.exec(select(Change)).all())
    made = Change(qid=qid, pid=pid, subject_label="", old_values=old or [], new_values=new or [], revision=revision,
                  statement="", modified_at=now, cycle_id=cycle.id)  # fmt: skip
    record_change(session, made)
    return made


def states(database: Database) -> list[ChangeState]:
    with database.read() as session:
        return list(session.exec(select(Change.state).order_by(col(Change.id))))


def test_a_newer_change_overtakes_one_of_its_slot_that_waits(database: Database, now: datetime) -> None:
    with database.transaction() as session:
        for slot in (("Q1", "P6"), ("Q1", "P36"), ("Q2", "P6"), ("Q1", "P6")):
            assert change(session, now, *slot).id is not None
    assert states(database) == [SUPERSEDED, PENDING, PENDING, PENDING]


@pytest.mark.parametrize("state", [state for state in ChangeState if state not in OPEN])
def test_one_that_does_not_wait_stays_what_it_is(database: Database, now: datetime, state: ChangeState) -> None:
    with database.transaction() as session:
        change(session, now).state = state
    with database.transaction() as session:
        change(session, now)
    assert states(database) == [state, PENDING]


def test_the_newest_change_is_the_one_recorded_last(database: Database, now: datetime) -> None:
    with database.transaction() as session:
        assert newest_change(session, "Q1", "P6") is None
        change(session, now)
        last = change(session, now)
        change(session, now, "Q2")
        assert newest_change(session, "Q1", "P6") is last


def test_what_became_open_behind_a_newer_change_is_overtaken(database: Database, now: datetime) -> None:
    with database.transaction() as session:
        first, other = change(session, now), change(session, now, "Q2")
        first.state = ChangeState.BATCHED
        change(session, now)
        # The candidate was not promoted.
        first.state = ChangeState.QUARANTINED
        session.add(Quarantine(change_id=first.id, qid="Q1", pid="P6", reason="rejected"))
        other.state = ChangeState.LIVE
        change(session, now, "Q2")
        session.flush()
        assert supersede_overtaken(session) == 1
        assert supersede_overtaken(session) == 0
    assert states(database) == [SUPERSEDED, ChangeState.LIVE, PENDING, PENDING]
    with database.read() as session:
        assert session.exec(select(Quarantine)).one().released_at is not None


# What was batched is rejected once something newer has come.
FATES = st.sampled_from(
    (PENDING, ChangeState.BATCHED, ChangeState.QUARANTINED, ChangeState.HELD, ChangeState.LIVE, ChangeState.UNEDITABLE)
)


@given(history=st.lists(st.tuples(st.integers(0, 5), FATES), min_size=1, max_size=6))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
def test_what_a_change_displaces_is_what_the_model_was_left_with(
    database: Database, now: datetime, history: list[tuple[int, ChangeState]]
) -> None:
    """Whatever was recorded and never written, and whatever of it was rejected while something newer came."""

    def named(number: int) -> Values:
        return [{"kind": "item", "id": f"Q{number}", "label": f"L{number}"}]

    with database.transaction() as session:
        qid = f"Q{1 + len(session.exec(select(Change)).all())}"
        recorded = model = named(99)
        written = None
        for number, fate in history:
            made = change(session, now, qid, old=recorded, new=named(number))
            assert values_left(session, made, written) == model
            for rejected in session.exec(select(Change).where(Change.state == ChangeState.BATCHED)):
                rejected.state = ChangeState.QUARANTINED
            supersede_overtaken(session)
            slot = session.exec(select(Change).where(Change.qid == qid, col(Change.state).in_(OPEN))).all()
            assert len(slot) <= 1, "never two of a slot"
            if made.state in OPEN:
                made.state = fate
            recorded = named(number)
            # Written or found to be there; an edit that is live is not displaced by what the base would say.
            if made.state is ChangeState.LIVE:
                written = made
            if made.state is ChangeState.LIVE or (made.state is ChangeState.HELD and written is None):
                model = recorded
