from __future__ import annotations

from datetime import datetime

import pytest
from sqlmodel import Session, col, select

from store import Database
from store.changes import OPEN, newest_change, record_change
from store.tables import Change, ChangeState, Cycle

PENDING, SUPERSEDED = ChangeState.PENDING, ChangeState.SUPERSEDED


def change(session: Session, now: datetime, qid: str = "Q1", pid: str = "P6") -> Change:
    cycle = Cycle()
    session.add(cycle)
    session.flush()
    revision = len(session.exec(select(Change)).all())
    made = Change(qid=qid, pid=pid, subject_label="", old_values=[], new_values=[], revision=revision,
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
