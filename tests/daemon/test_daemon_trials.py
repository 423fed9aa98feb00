"""Promotion of a batch with bad edits, over a real database: the measurements are staged, everything else is real."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file
from sqlmodel import col, select

from daemon import control
from daemon.promote import promote
from daemon.quarantine import release_due
from store import ledger
from store.cycles import advance, current_cycle
from store.tables import (
    Change,
    ChangeState,
    Cycle,
    Edit,
    GateMeasure,
    LedgerEntry,
    Outcome,
    Phase,
    ProbeResult,
    Quarantine,
    Trial,
    Version,
    VersionState,
    key,
    utc_now,
)

if TYPE_CHECKING:
    from daemon.runtime import Runtime

MOMENT = datetime(2022, 6, 1, tzinfo=UTC)
FACTS = 20


class Batch:
    """A batch of changes whose edits do what is told: wreck the whole, spread to neighbours, or do not take.

    Args:
        runtime: with its database.
        bad: edits (by number) with which the gate rejects.
        spreading: edits whose neighbours are answered with their target.
        weak: edits that do not take, whatever their strength; ``shy`` ones take when written more strongly.
        held: whether the gate holds what it does not reject.
    """

    def __init__(
        self,
        runtime: Runtime,
        *,
        bad: tuple[int, ...] = (),
        spreading: tuple[int, ...] = (),
        weak: tuple[int, ...] = (),
        shy: tuple[int, ...] = (),
        held: bool = False,
    ) -> None:
        self.runtime, self.bad, self.spreading, self.weak, self.shy, self.held = (
            runtime, set(bad), set(spreading), set(weak), set(shy), held
        )  # fmt: skip
        with runtime.database.transaction() as session:
            session.add(Cycle(phase=Phase.PROMOTE, candidate_id=None))
            session.add(Version(id=0, state=VersionState.PROMOTED, base_digest="b", settings_digest="s"))
            session.flush()
            for number in range(1, FACTS + 1):
                session.add(_change(number))
                session.flush()
                session.add(_edit(number))
            session.add(Version(id=1, parent_id=0, state=VersionState.CANDIDATE, base_digest="b", settings_digest="s"))
            session.flush()
            session.add_all(LedgerEntry(version_id=1, edit_id=number) for number in range(1, FACTS + 1))
            session.add(Trial(cycle_id=1, version_id=1))
            current_cycle(session, 1).candidate_id = 1

    def run(self) -> Cycle:
        """Measure and decide until the cycle leaves its trials."""
        while True:
            with self.runtime.database.read() as session:
                cycle = current_cycle(session, 1)
            if cycle.phase not in (Phase.EDIT, Phase.PROMOTE):
                return cycle
            self._measure(cycle.candidate_id or 0)
            promote(self.runtime, 1)

    def _measure(self, version_id: int) -> None:
        store = self.runtime.artifacts
        with store.stage(version_id) as staging:
            save_file({"weight": torch.full((4,), float(version_id))}, staging / "model.safetensors")
            digest = store.seal(staging, version_id, {})
        with self.runtime.database.transaction() as session:
            written = ledger.strengths(session, version_id)
            ledger.get_version(session, version_id).digest = digest
            advance(session, 1, Phase.PROMOTE)
            rejected = bool(self.bad & set(written))
            verdict = "fail" if rejected else ("inconclusive" if self.held else "pass")
            session.add(
                GateMeasure(
                    version_id=version_id, measure="perplexity", against="base", candidate=1.0, reference=1.0,
                    threshold=0.05, n=30, verdict=verdict, detail=f"perplexity {verdict}",
                )
            )  # fmt: skip
            for number, strength in written.items():
                takes = number not in self.weak and (number not in self.shy or strength > 1)
                session.add(_result(version_id, number, "efficacy", takes))
                for _ in range(4):
                    session.add(_result(version_id, number, "neighbourhood", number not in self.spreading))

    def states(self) -> dict[int, str]:
        with self.runtime.database.read() as session:
            return {key(change): change.state.value for change in session.exec(select(Change))}

    def reasons(self) -> dict[int, str]:
        with self.runtime.database.read() as session:
            return {row.change_id: row.reason for row in session.exec(select(Quarantine))}

    def written(self) -> dict[int, float]:
        with self.runtime.database.read() as session:
            present = ledger.promoted(session)
            assert present is not None
            return ledger.strengths(session, present.id)


def _change(number: int) -> Change:
    return Change(
        id=number, qid=f"Q{number}", pid="P6", subject_label=f"Land {number}", old_values=[],
        new_values=[{"kind": "item", "id": f"Q{900 + number}", "label": f"Name {number}"}], revision=number,
        statement="s", modified_at=MOMENT, cycle_id=1, state=ChangeState.BATCHED,
    )  # fmt: skip


def _edit(number: int) -> Edit:
    return Edit(
        id=number, change_id=number, qid=f"Q{number}", pid="P6", prompt="{} is led by", subject=f"Land {number}",
        target=f"Name {number}", former=None,
    )  # fmt: skip


def _result(version_id: int, number: int, kind: str, passed: bool) -> ProbeResult:
    near = kind == "neighbourhood"
    return ProbeResult(
        version_id=version_id, kind=kind, qid=f"Q{number + (500 if near else 0)}", pid="P6", prompt="?",
        expected="x" if near else f"Name {number}", rival=f"Name {number}" if near else None,
        answer="x" if passed else "y", correct=passed, base_correct=True if near else None,
        promoted_correct=True if near else None,
    )  # fmt: skip


@pytest.fixture
def trying(runtime: Runtime) -> Runtime:
    """With a search for bad edits."""
    limits = runtime.settings.trials.model_copy(update={"maximum": 30})
    gate = runtime.settings.gate.model_copy(update={"neighbourhood_max_drop": 0.08})
    runtime.settings = runtime.settings.model_copy(update={"trials": limits, "gate": gate})
    return runtime


def test_a_good_batch_is_promoted_as_it_is(trying: Runtime) -> None:
    made = Batch(trying)
    assert made.run().phase is Phase.PUBLISH
    assert set(made.states().values()) == {"live"}


def test_only_the_bad_are_kept_out_and_the_rest_is_promoted_in_the_same_cycle(trying: Runtime) -> None:
    made = Batch(trying, bad=(3, 11), spreading=(5,), weak=(17,), shy=(8,))
    cycle = made.run()
    assert cycle.phase is Phase.PUBLISH
    assert {number for number, state in made.states().items() if state == "quarantined"} == {3, 5, 11, 17}
    assert {number for number, state in made.states().items() if state == "live"} == set(made.written())
    assert made.written() == {n: 4.0 if n == 8 else 1.0 for n in range(1, FACTS + 1) if n not in (3, 5, 11, 17)}
    assert cycle.counts["quarantined"] == 4


def test_the_reasons_say_what_each_did(trying: Runtime) -> None:
    made = Batch(trying, bad=(3,), spreading=(5,), weak=(17,))
    made.run()
    reasons = made.reasons()
    assert "was rejected, and without it none: perplexity fail" in reasons[3]
    assert "spreads to its neighbours" in reasons[5]
    assert "4 of 4 neighbours in P6 are answered with 'Name 5'" in reasons[5]
    assert "does not take, although its strength was raised 2 times" in reasons[17]
    assert "answers 'y' instead of 'Name 17'" in reasons[17]


def test_trials_that_were_not_chosen_are_rejected_and_their_files_deleted(trying: Runtime) -> None:
    made = Batch(trying, bad=(3,))
    chosen = made.run().candidate_id
    with trying.database.read() as session:
        others = [v for v in session.exec(select(Version)) if v.id not in (0, chosen)]
    assert len(others) > 1
    assert all(version.state is VersionState.REJECTED for version in others)
    assert [v.id for v in others if trying.artifacts.path(v.id).exists()] == []
    assert trying.artifacts.path(chosen or 0).exists()


def test_a_candidate_that_nothing_mends_is_rejected_as_a_whole(trying: Runtime) -> None:
    made = Batch(trying, bad=tuple(range(1, FACTS + 1)))
    cycle = made.run()
    assert (cycle.phase, cycle.outcome) == (Phase.DONE, Outcome.REJECTED)
    assert set(made.states().values()) == {"quarantined"}


def test_a_held_trial_waits_with_the_bad_kept_out(trying: Runtime) -> None:
    made = Batch(trying, bad=(3,), held=True)
    cycle = made.run()
    assert cycle.outcome is Outcome.HELD
    assert {n for n, state in made.states().items() if state == "quarantined"} == {3}
    control.approve(trying, cycle.candidate_id or 0)
    assert {n for n, state in made.states().items() if state == "live"} == set(range(1, FACTS + 1)) - {3}


def test_with_one_trial_a_rejected_batch_is_kept_out_whole(runtime: Runtime) -> None:
    made = Batch(runtime, bad=(3,))
    assert made.run().outcome is Outcome.REJECTED
    assert set(made.states().values()) == {"quarantined"}


def test_what_harmed_is_tried_again_later_and_later_and_then_no_more(trying: Runtime) -> None:
    made = Batch(trying, weak=(17,))
    made.run()
    waits = []
    for _ in range(2):
        with trying.database.transaction() as session:
            kept = session.exec(
                select(Quarantine).where(Quarantine.change_id == 17).order_by(col(Quarantine.id).desc())
            ).first()
            assert kept is not None
            assert kept.retry_at is not None
            waits.append(kept.retry_at - kept.created_at)
            assert release_due(session) == 0, "not before its time"
            kept.retry_at = utc_now() - timedelta(seconds=1)
            session.flush()
            assert release_due(session) == 1
            change = session.get_one(Change, 17)
            assert change.state is ChangeState.PENDING
            change.state = ChangeState.BATCHED
            again = Version(
                id=ledger.next_version_id(session), parent_id=0, state=VersionState.CANDIDATE, base_digest="b",
                settings_digest="s",
            )  # fmt: skip
            session.add(again)
            session.flush()
            session.add(LedgerEntry(version_id=again.id, edit_id=17))
            cycle = Cycle(phase=Phase.PROMOTE, candidate_id=again.id)
            session.add(cycle)
            session.flush()
            session.add(Trial(cycle_id=key(cycle), version_id=again.id))
            session.add(
                GateMeasure(
                    version_id=again.id, measure="efficacy", against="floor", candidate=0.0, reference=None,
                    threshold=1.0, n=1, verdict="fail", detail="efficacy",
                )
            )  # fmt: skip
            number = key(cycle)
        promote(trying, number)
    with trying.database.read() as session:
        rows = session.exec(select(Quarantine).where(Quarantine.change_id == 17).order_by(col(Quarantine.id))).all()
    assert waits[1] >= 1.9 * waits[0]
    assert rows[-1].retry_at is None, "from now on only by an operator"
