from __future__ import annotations

import shutil
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from conftest import FAST_DISK
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, select

from store import Database, UnknownVersion, WrongState, ledger, open_database
from store.tables import Change, Cycle, Edit, LedgerEntry, Outcome, Phase, Version, VersionState

CANDIDATE, PROMOTED = VersionState.CANDIDATE, VersionState.PROMOTED
REJECTED, RETIRED = VersionState.REJECTED, VersionState.RETIRED


def add_version(session: Session, version_id: int, state: VersionState, edits: tuple[int, ...] = ()) -> Version:
    version = Version(id=version_id, state=state, base_digest="b", settings_digest="s")
    session.add(version)
    session.flush()
    session.add_all([LedgerEntry(version_id=version_id, edit_id=edit) for edit in edits])
    session.flush()
    return version


def add_edits(session: Session, count: int, now: datetime) -> None:
    cycle = Cycle(phase=Phase.DONE)
    session.add(cycle)
    session.flush()
    for number in range(1, count + 1):
        change = Change(qid=f"Q{number}", pid="P6", subject_label="", old_values=[], new_values=[],
                        revision=1, statement="", modified_at=now, cycle_id=cycle.id)  # fmt: skip
        session.add(change)
        session.flush()
        session.add(Edit(change_id=change.id, qid=f"Q{number}", pid="P6", prompt="{}", subject="s",
                         target="t", former=None))  # fmt: skip
        session.flush()


def states(database: Database) -> dict[int, VersionState]:
    with database.read() as session:
        return {version.id: version.state for version in session.exec(select(Version))}


def test_an_empty_database_has_nothing(database: Database) -> None:
    with database.read() as session:
        assert ledger.promoted(session) is None
        assert ledger.unfinished_cycle(session) is None
        assert ledger.held_candidate(session) is None
        assert ledger.next_version_id(session) == 0
        with pytest.raises(UnknownVersion, match="factsyncd versions") as unknown:
            ledger.get_version(session, 3)
        assert unknown.value.version_id == 3
        with pytest.raises(UnknownVersion):
            ledger.ledger_edits(session, 3)


def test_a_promotion_retires_the_present_version_and_rollback_brings_it_back(database: Database, now: datetime) -> None:
    with database.transaction() as session:
        add_version(session, 0, PROMOTED)
        add_version(session, 1, CANDIDATE)
    later = now + timedelta(hours=1)
    with database.transaction() as session:
        promoted = ledger.promote(session, ledger.get_version(session, 1), "the gate passed", now)
        assert ledger.promoted(session) is promoted
    assert states(database) == {0: RETIRED, 1: PROMOTED}
    with database.transaction() as session:
        ledger.promote(session, ledger.get_version(session, 0), "rolled back", later)
    assert states(database) == {0: PROMOTED, 1: RETIRED}
    with database.read() as session:
        base, edited = ledger.get_version(session, 0), ledger.get_version(session, 1)
    assert (base.reason, base.decided_at) == ("rolled back", later)
    assert (edited.reason, edited.decided_at) == ("replaced by version 0: rolled back", later)


def test_promoting_the_promoted_version_again_changes_nothing(database: Database, now: datetime) -> None:
    with database.transaction() as session:
        ledger.promote(session, add_version(session, 0, CANDIDATE), "first", now)
    with database.transaction() as session:
        ledger.promote(session, ledger.get_version(session, 0), "again", now + timedelta(days=1))
    with database.read() as session:
        version = ledger.get_version(session, 0)
        assert (version.reason, version.decided_at) == ("first", now)


def test_a_version_from_an_earlier_session_can_be_promoted(database: Database, now: datetime) -> None:
    with database.transaction() as session:
        version = add_version(session, 0, CANDIDATE)
    with database.transaction() as session:
        assert ledger.promote(session, version, "gate", now).state == PROMOTED
    assert states(database) == {0: PROMOTED}


def test_a_rejected_version_stays_rejected(database: Database, now: datetime) -> None:
    with database.transaction() as session:
        ledger.reject(session, add_version(session, 0, CANDIDATE), "lost its neighbours", now)
    with database.transaction() as session:
        ledger.reject(session, ledger.get_version(session, 0), "again", now)
    with pytest.raises(WrongState, match="lost its neighbours"), database.transaction() as session:
        ledger.promote(session, ledger.get_version(session, 0), "anyway", now)
    assert states(database) == {0: REJECTED}


@pytest.mark.parametrize("state", [PROMOTED, RETIRED])
def test_only_a_candidate_is_rejected(database: Database, now: datetime, state: VersionState) -> None:
    with pytest.raises(WrongState, match="rollback"), database.transaction() as session:
        ledger.reject(session, add_version(session, 0, state), "no", now)


def test_the_database_itself_refuses_two_promoted_versions(database: Database) -> None:
    with pytest.raises(IntegrityError), database.transaction() as session:
        add_version(session, 0, PROMOTED)
        add_version(session, 1, PROMOTED)


def test_a_promotion_whose_transaction_fails_leaves_the_former_one(database: Database, now: datetime) -> None:
    with database.transaction() as session:
        add_version(session, 0, PROMOTED)
        add_version(session, 1, CANDIDATE)
    with pytest.raises(ZeroDivisionError), database.transaction() as session:
        ledger.promote(session, ledger.get_version(session, 1), "gate", now)
        raise ZeroDivisionError
    assert states(database) == {0: PROMOTED, 1: CANDIDATE}


def test_ledger_edits_come_in_order(database: Database, now: datetime) -> None:
    with database.transaction() as session:
        add_edits(session, 4, now)
        add_version(session, 0, RETIRED)
        add_version(session, 1, PROMOTED, (4, 1, 3))
    with database.read() as session:
        assert [edit.id for edit in ledger.ledger_edits(session, 1)] == [1, 3, 4]
        assert ledger.ledger_edits(session, 0) == []


def test_version_numbers_are_not_used_twice(database: Database) -> None:
    with database.transaction() as session:
        add_version(session, 0, PROMOTED)
        add_version(session, 7, REJECTED)
        assert ledger.next_version_id(session) == 8


def test_the_oldest_unfinished_cycle_is_resumed(database: Database) -> None:
    with database.transaction() as session:
        for phase in (Phase.DONE, Phase.EDIT, Phase.PULL):
            session.add(Cycle(phase=phase))
            session.flush()
    with database.read() as session:
        assert ledger.unfinished_cycle(session).phase == Phase.EDIT


def test_a_held_candidate_is_one_whose_last_cycle_held_it(database: Database) -> None:
    def cycle(candidate: int | None, outcome: Outcome | None) -> None:
        with database.transaction() as session:
            session.add(Cycle(phase=Phase.DONE, candidate_id=candidate, outcome=outcome))

    def held() -> int | None:
        with database.read() as session:
            version = ledger.held_candidate(session)
            return version and version.id

    with database.transaction() as session:
        add_version(session, 0, PROMOTED)
        add_version(session, 1, CANDIDATE)
    assert held() is None
    cycle(1, None)
    assert held() is None
    cycle(1, Outcome.HELD)
    assert held() == 1
    cycle(None, Outcome.NOTHING)  # later cycles about nothing do not release it
    assert held() == 1
    cycle(1, Outcome.ERROR)
    assert held() is None
    cycle(0, Outcome.HELD)  # not a candidate any more
    assert held() is None


class Decisions(RuleBasedStateMachine):
    """Any sequence of candidates, promotions, rejections and rollbacks, against a model."""

    EDITS = 6

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="factsyncd-", dir=FAST_DISK))
        self.database = open_database(self.directory / "state.db")
        self.database.migrate()
        self.states: dict[int, VersionState] = {}
        self.ledgers: dict[int, list[int]] = {}
        self.clock = datetime(2026, 3, 1, tzinfo=UTC)

    def teardown(self) -> None:
        self.database.close()
        shutil.rmtree(self.directory)

    @initialize()
    def base(self) -> None:
        with self.database.transaction() as session:
            add_edits(session, self.EDITS, self.clock)
            ledger.promote(session, add_version(session, 0, CANDIDATE), "base", self.clock)
        self.states[0], self.ledgers[0] = PROMOTED, []

    @rule(edits=st.sets(st.integers(1, EDITS)))
    def candidate(self, edits: set[int]) -> None:
        with self.database.transaction() as session:
            number = ledger.next_version_id(session)
            assert number not in self.states
            add_version(session, number, CANDIDATE, tuple(edits))
        self.states[number], self.ledgers[number] = CANDIDATE, sorted(edits)

    @rule(data=st.data(), crash=st.booleans())
    def promote(self, data: st.DataObject, crash: bool) -> None:
        number = data.draw(st.sampled_from(sorted(self.states)))
        allowed = self.states[number] != REJECTED
        try:
            with self.database.transaction() as session:
                ledger.promote(session, ledger.get_version(session, number), "because", self.clock)
                if crash:
                    raise ZeroDivisionError
        except WrongState:
            assert not allowed
            return
        except ZeroDivisionError:
            return
        assert allowed
        self.states |= {n: RETIRED for n, state in self.states.items() if state == PROMOTED} | {number: PROMOTED}

    @rule(data=st.data())
    def reject(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.states)))
        try:
            with self.database.transaction() as session:
                ledger.reject(session, ledger.get_version(session, number), "because", self.clock)
        except WrongState:
            assert self.states[number] in (PROMOTED, RETIRED)
        else:
            assert self.states[number] in (CANDIDATE, REJECTED)
            self.states[number] = REJECTED

    @invariant()
    def exactly_one_is_promoted_and_ledgers_never_change(self) -> None:
        if not self.states:
            return
        assert list(self.states.values()).count(PROMOTED) == 1
        with self.database.read() as session:
            assert {version.id: version.state for version in session.exec(select(Version))} == self.states
            assert self.states[ledger.promoted(session).id] == PROMOTED
            for number, edits in self.ledgers.items():
                assert [edit.id for edit in ledger.ledger_edits(session, number)] == edits


TestDecisions = Decisions.TestCase
TestDecisions.settings = settings(max_examples=20, stateful_step_count=15, deadline=None)


def test_edits_come_in_the_batches_in_which_they_first_came(database: Database) -> None:
    with database.transaction() as session:
        add_edits(session, 5, datetime.now(UTC))
        add_version(session, 0, RETIRED)
        add_version(session, 1, RETIRED, (3, 1))
        add_version(session, 2, REJECTED, (1, 3, 4))
        add_version(session, 3, PROMOTED, (2, 3, 5, 4))
    with database.read() as session:
        batches = ledger.ledger_batches(session, 3)
        assert [[edit.id for edit in batch] for batch in batches] == [[3], [4], [2, 5]]
        assert ledger.ledger_batches(session, 0) == []
        with pytest.raises(UnknownVersion):
            ledger.ledger_batches(session, 9)
