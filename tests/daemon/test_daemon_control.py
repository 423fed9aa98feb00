"""What an operator decides, over real tables and real (tiny) artifacts."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file
from sqlmodel import col, select

from daemon import control
from daemon.errors import NotPossible
from daemon.promote import accept, refuse, settle_changes
from store import ArtifactCorrupt, UnknownVersion, WrongState, ledger
from store.tables import (
    Change,
    ChangeState,
    Cycle,
    Edit,
    LedgerEntry,
    Outcome,
    Phase,
    Publication,
    PublicationState,
    Quarantine,
    Version,
    VersionState,
)

if TYPE_CHECKING:
    from daemon.runtime import Runtime

MOMENT = datetime(2022, 6, 1, tzinfo=UTC)
LIVE, BATCHED, PENDING = ChangeState.LIVE, ChangeState.BATCHED, ChangeState.PENDING


class State:
    """Puts rows and artifacts where a run of cycles would have put them."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        with runtime.database.transaction() as session:
            session.add(Cycle(phase=Phase.DONE, outcome=Outcome.NOTHING))

    def version(
        self, number: int, state: VersionState, edits: tuple[int, ...] = (), outcome: Outcome | None = None
    ) -> None:
        """A version with an artifact and a ledger; with an outcome also the cycle that made it."""
        store = self.runtime.artifacts
        with store.stage(number) as staging:
            save_file({"weight": torch.full((4,), float(number))}, staging / "model.safetensors")
            digest = store.seal(staging, number, {})
        with self.runtime.database.transaction() as session:
            session.add(
                Version(
                    id=number, parent_id=number - 1 if number else None, state=state, base_digest="b",
                    settings_digest="s", digest=digest,
                )
            )  # fmt: skip
            session.flush()
            session.add_all(LedgerEntry(version_id=number, edit_id=edit) for edit in edits)
            if outcome is not None:
                session.add(Cycle(phase=Phase.DONE, outcome=outcome, candidate_id=number))

    def change(
        self, number: int, state: ChangeState, *, qid: str | None = None, edit: bool = True, origin: int | None = None
    ) -> None:
        """A change, and the edit (of the same number) that writes it."""
        name = qid or f"Q{number}"
        value = [{"kind": "item", "id": f"Q{900 + number}", "label": f"Name {number}"}]
        with self.runtime.database.transaction() as session:
            session.add(
                Change(
                    id=number, qid=name, pid="P6", subject_label=name, old_values=[],
                    new_values=value if edit else [], revision=100 + number, statement="s",
                    modified_at=MOMENT, cycle_id=1, state=state, origin_id=origin,
                )
            )  # fmt: skip
            session.flush()
            if edit:
                session.add(
                    Edit(
                        id=number, change_id=number, qid=name, pid="P6", prompt="{} is led by", variants=[],
                        subject=name, target=f"Name {number}", former=None,
                    )
                )  # fmt: skip

    def changes(self) -> dict[int, str]:
        with self.runtime.database.read() as session:
            return {c.id or 0: c.state.value for c in session.exec(select(Change).order_by(col(Change.id)))}

    def versions(self) -> dict[int, str]:
        with self.runtime.database.read() as session:
            return {v.id: v.state.value for v in session.exec(select(Version).order_by(col(Version.id)))}

    def quarantine(self) -> list[tuple[int, bool]]:
        """The change, and whether it is still kept out."""
        with self.runtime.database.read() as session:
            rows = session.exec(select(Quarantine).order_by(col(Quarantine.id)))
            return [(row.change_id, row.released_at is None) for row in rows]

    def publications(self) -> list[tuple[int, PublicationState]]:
        with self.runtime.database.read() as session:
            rows = session.exec(select(Publication).order_by(col(Publication.id)))
            return [(row.version_id, row.state) for row in rows]

    def current(self) -> str:
        return (self.runtime.settings.state.directory / "current").readlink().name


@pytest.fixture
def state(runtime: Runtime) -> State:
    return State(runtime)


def get(state: State, number: int) -> Version:
    with state.runtime.database.read() as session:
        return ledger.get_version(session, number)


def history(state: State) -> None:
    """v0 <- v1 (edit 1) <- v2 (edits 1, 2), v2 promoted."""
    state.change(1, LIVE)
    state.change(2, LIVE)
    state.version(0, VersionState.RETIRED)
    state.version(1, VersionState.RETIRED, (1,))
    state.version(2, VersionState.PROMOTED, (1, 2))


def candidate_of(state: State, outcome: Outcome | None = Outcome.HELD) -> None:
    """v1 (edit 1) is promoted, v2 (edits 1, 2) waits."""
    state.change(1, LIVE)
    state.change(2, BATCHED)
    state.version(0, VersionState.RETIRED)
    state.version(1, VersionState.PROMOTED, (1,))
    state.version(2, VersionState.CANDIDATE, (1, 2), outcome)


def test_accept_settles_versions_changes_and_the_outbox(state: State) -> None:
    # v1 wrote 1 and 5; v2 keeps 1, writes 2, and 6 (a withdrawal) took 5 out; 3 came in meanwhile.
    state.change(1, LIVE)
    state.change(5, LIVE)
    state.change(2, BATCHED)
    state.change(6, BATCHED, qid="Q5", edit=False)
    state.change(3, PENDING)
    state.version(0, VersionState.RETIRED)
    state.version(1, VersionState.PROMOTED, (1, 5))
    state.version(2, VersionState.CANDIDATE, (1, 2))
    with state.runtime.database.transaction() as session:
        accept(session, ledger.get_version(session, 2), "all passed", ["directory"])
    assert state.versions() == {0: "retired", 1: "retired", 2: "promoted"}
    assert state.changes() == {1: "live", 2: "live", 3: "pending", 5: "superseded", 6: "withdrawn"}
    assert state.publications() == [(2, PublicationState.PENDING)]
    assert get(state, 2).reason == "all passed"
    assert get(state, 2).decided_at is not None


def test_settling_twice_changes_nothing(state: State) -> None:
    candidate_of(state)
    with state.runtime.database.transaction() as session:
        accept(session, ledger.get_version(session, 2), "passed", ["directory"])
    once = state.changes()
    with state.runtime.database.transaction() as session:
        settle_changes(session, ledger.get_version(session, 2))
    assert state.changes() == once == {1: "live", 2: "live"}


def test_refuse_keeps_what_is_live_and_quarantines_the_batch_with_the_reason(state: State) -> None:
    candidate_of(state)
    with state.runtime.database.transaction() as session:
        refuse(session, ledger.get_version(session, 2), "efficacy 0.0% of 2 is below 95.0%")
    assert state.versions() == {0: "retired", 1: "promoted", 2: "rejected"}
    assert state.changes() == {1: "live", 2: "quarantined"}
    with state.runtime.database.read() as session:
        row = session.exec(select(Quarantine)).one()
    assert (row.change_id, row.version_id) == (2, 2)
    assert "efficacy 0.0%" in row.reason
    assert state.publications() == []


def test_rollback_goes_one_version_back(state: State) -> None:
    history(state)
    assert control.rollback(state.runtime, None) == 1
    assert state.versions() == {0: "retired", 1: "promoted", 2: "retired"}
    assert state.changes() == {1: "live", 2: "quarantined"}
    assert state.quarantine() == [(2, True)]
    assert state.publications() == [(1, PublicationState.DELIVERED)]
    assert state.current() == "v1"


def test_rollback_to_the_base_takes_every_edit_out(state: State) -> None:
    history(state)
    assert control.rollback(state.runtime, 0) == 0
    assert state.changes() == {1: "quarantined", 2: "quarantined"}
    assert state.current() == "v0"


def test_rolled_back_facts_are_not_written_again_until_they_are_released(state: State) -> None:
    history(state)
    control.rollback(state.runtime, 1)
    assert PENDING.value not in state.changes().values()
    assert control.release(state.runtime, None) == 1
    assert state.changes() == {1: "live", 2: "pending"}


def test_a_rollback_can_itself_be_rolled_back(state: State) -> None:
    history(state)
    control.rollback(state.runtime, 1)
    assert control.rollback(state.runtime, 2) == 2
    assert state.versions() == {0: "retired", 1: "retired", 2: "promoted"}
    assert state.changes() == {1: "live", 2: "live"}
    assert state.current() == "v2"


def test_what_is_live_again_is_no_longer_listed_as_kept_out(state: State) -> None:
    history(state)
    control.rollback(state.runtime, 1)
    control.rollback(state.runtime, 2)
    assert [kept for _, kept in state.quarantine()] == [False]


def withdrawn(state: State) -> None:
    """v1 (edits 1, 2) <- v2 (edit 2): change 3 took edit 1 out."""
    state.change(1, ChangeState.SUPERSEDED)
    state.change(2, LIVE)
    state.change(3, ChangeState.WITHDRAWN, qid="Q1", edit=False)
    state.version(0, VersionState.RETIRED)
    state.version(1, VersionState.RETIRED, (1, 2))
    state.version(2, VersionState.PROMOTED, (2,))


def test_a_rollback_undoes_a_withdrawal_until_it_is_released(state: State) -> None:
    withdrawn(state)
    control.rollback(state.runtime, 1)
    assert state.changes() == {1: "live", 2: "live", 3: "quarantined"}
    assert state.quarantine() == [(3, True)]
    assert control.release(state.runtime, "Q1") == 1
    assert state.changes() == {1: "live", 2: "live", 3: "pending"}


def test_rolled_forward_again_the_withdrawal_is_done(state: State) -> None:
    withdrawn(state)
    control.rollback(state.runtime, 1)
    control.rollback(state.runtime, 2)
    assert state.changes() == {1: "superseded", 2: "live", 3: "withdrawn"}
    assert state.quarantine() == [(3, False)]


def test_a_withdrawal_that_a_later_change_has_overtaken_is_not_undone(state: State) -> None:
    withdrawn(state)
    state.change(4, LIVE, qid="Q1")
    state.version(3, VersionState.CANDIDATE, (2, 4))
    with state.runtime.database.transaction() as session:
        accept(session, ledger.get_version(session, 3), "passed", ["directory"])
    control.rollback(state.runtime, 1)
    assert state.changes() == {1: "live", 2: "live", 3: "withdrawn", 4: "quarantined"}


def test_a_rejected_withdrawal_stays_kept_out_while_its_edit_is_live(state: State) -> None:
    state.change(1, LIVE)
    state.change(2, BATCHED, qid="Q1", edit=False)
    state.change(3, BATCHED)
    state.version(0, VersionState.RETIRED)
    state.version(1, VersionState.PROMOTED, (1,))
    state.version(2, VersionState.CANDIDATE, (3,))
    with state.runtime.database.transaction() as session:
        refuse(session, ledger.get_version(session, 2), "perplexity")
    state.version(3, VersionState.CANDIDATE, (1,))
    with state.runtime.database.transaction() as session:
        accept(session, ledger.get_version(session, 3), "passed", ["directory"])
    assert state.changes() == {1: "live", 2: "quarantined", 3: "quarantined"}


def test_rollback_refuses_what_makes_no_sense_and_changes_nothing(state: State) -> None:
    history(state)
    state.version(3, VersionState.REJECTED, (1, 2))
    before = (state.versions(), state.changes())
    for number, error in ((2, NotPossible), (3, WrongState), (9, UnknownVersion)):
        with pytest.raises(error):
            control.rollback(state.runtime, number)
    assert (state.versions(), state.changes()) == before
    assert state.publications() == []


def test_a_candidate_is_approved_and_not_rolled_back_to(state: State) -> None:
    candidate_of(state)
    with pytest.raises(NotPossible, match="approve"):
        control.rollback(state.runtime, 2)
    assert state.versions()[2] == "candidate"


def test_there_is_nothing_behind_the_base(state: State) -> None:
    state.version(0, VersionState.PROMOTED)
    with pytest.raises(NotPossible, match="no earlier version"):
        control.rollback(state.runtime, None)


def test_rollback_to_a_damaged_version_changes_nothing(state: State) -> None:
    history(state)
    weights = state.runtime.artifacts.path(1) / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ArtifactCorrupt):
        control.rollback(state.runtime, 1)
    assert state.versions() == {0: "retired", 1: "retired", 2: "promoted"}
    assert state.changes() == {1: "live", 2: "live"}


@pytest.mark.parametrize("phase", [Phase.EDIT, None], ids=["in work", "held"])
def test_rollback_never_loses_the_changes_of_a_candidate(state: State, phase: Phase | None) -> None:
    """Its batch must not be settled as if it had been decided: refused, or still waiting or kept out with a reason."""
    candidate_of(state, outcome=Outcome.HELD if phase is None else None)
    if phase is not None:
        with state.runtime.database.transaction() as session:
            session.add(Cycle(phase=phase, candidate_id=2))
    try:
        control.rollback(state.runtime, 0)
    except NotPossible:
        assert state.versions() == {0: "retired", 1: "promoted", 2: "candidate"}
        assert state.changes() == {1: "live", 2: "batched"}
    else:
        assert state.changes()[1] == "quarantined"
        assert state.changes()[2] in {"pending", "quarantined"}


def test_approve_promotes_and_publishes_the_held_candidate(state: State) -> None:
    candidate_of(state)
    assert control.approve(state.runtime, 2) == 2
    assert state.versions() == {0: "retired", 1: "retired", 2: "promoted"}
    assert state.changes() == {1: "live", 2: "live"}
    assert state.publications() == [(2, PublicationState.DELIVERED)]
    assert state.current() == "v2"
    with state.runtime.database.read() as session:
        cycle = session.exec(select(Cycle).where(Cycle.candidate_id == 2)).one()
        assert ledger.held_candidate(session) is None
    assert (cycle.phase, cycle.outcome) == (Phase.DONE, Outcome.PROMOTED)


def test_reject_quarantines_the_held_candidates_changes(state: State) -> None:
    candidate_of(state)
    control.reject(state.runtime, 2)
    assert state.versions() == {0: "retired", 1: "promoted", 2: "rejected"}
    assert state.changes() == {1: "live", 2: "quarantined"}
    with state.runtime.database.read() as session:
        cycle = session.exec(select(Cycle).where(Cycle.candidate_id == 2)).one()
        assert ledger.held_candidate(session) is None
    assert cycle.outcome is Outcome.REJECTED


@pytest.mark.parametrize("decide", [control.approve, control.reject])
@pytest.mark.parametrize("number", [1, 7])
def test_only_the_held_candidate_can_be_decided(state: State, decide: object, number: int) -> None:
    candidate_of(state)
    before = (state.versions(), state.changes())
    with pytest.raises(NotPossible, match="version 2 waits"):
        decide(state.runtime, number)  # type: ignore[operator]
    assert (state.versions(), state.changes()) == before


@pytest.mark.parametrize("decide", [control.approve, control.reject])
def test_a_candidate_in_work_cannot_be_decided(state: State, decide: object) -> None:
    candidate_of(state, outcome=None)
    with state.runtime.database.transaction() as session:
        session.add(Cycle(phase=Phase.VALIDATE, candidate_id=2))
    with pytest.raises(NotPossible, match="no candidate waits"):
        decide(state.runtime, 2)  # type: ignore[operator]


def test_approving_a_damaged_candidate_changes_nothing(state: State) -> None:
    candidate_of(state)
    (state.runtime.artifacts.path(2) / "model.safetensors").unlink()
    with pytest.raises(ArtifactCorrupt):
        control.approve(state.runtime, 2)
    assert state.versions()[1] == "promoted"


def quarantined(state: State, number: int, qid: str | None = None, origin: int | None = None) -> None:
    state.change(number, ChangeState.QUARANTINED, qid=qid, origin=origin)
    with state.runtime.database.transaction() as session:
        session.add(Quarantine(change_id=number, qid=qid or f"Q{number}", pid="P6", reason="test"))


def test_release_of_one_subject_and_of_all(state: State) -> None:
    for number in (1, 2, 3):
        quarantined(state, number)
    assert control.release(state.runtime, "Q2") == 1
    assert state.changes() == {1: "quarantined", 2: "pending", 3: "quarantined"}
    assert control.release(state.runtime, "Q2") == 0
    assert control.release(state.runtime, "Q77") == 0
    assert control.release(state.runtime, None) == 2
    assert set(state.changes().values()) == {"pending"}
    assert [kept for _, kept in state.quarantine()] == [False] * 3


def test_a_change_that_was_overtaken_is_not_released(state: State) -> None:
    quarantined(state, 1, "Q5")
    state.change(2, LIVE, qid="Q5")
    assert control.release(state.runtime, None) == 0
    assert state.changes() == {1: "quarantined", 2: "live"}


@pytest.mark.parametrize("qid", ["Q1", "Q2"])
def test_both_ends_of_a_fact_are_released_together(state: State, qid: str) -> None:
    quarantined(state, 1)
    quarantined(state, 2, origin=1)
    quarantined(state, 3)
    assert control.release(state.runtime, qid) == 2
    assert state.changes() == {1: "pending", 2: "pending", 3: "quarantined"}


def test_pause_outlives_the_process(state: State) -> None:
    assert not control.is_paused(state.runtime)
    for paused in (True, True, False, True):
        control.pause(state.runtime) if paused else control.resume(state.runtime)
        assert control.is_paused(state.runtime) is paused
    state.runtime.database.close()
    from daemon.runtime import Runtime

    assert control.is_paused(Runtime(state.runtime.settings))
