"""Promote: apply the gate's rule to what was measured, and flip the versions' states in one transaction."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlmodel import col, select

from daemon import outbox
from daemon.batch import quarantine
from daemon.gate import Comparison, Decision, Verdict, decide, reasons
from store import ledger
from store.cycles import advance, current_cycle, finish
from store.tables import (
    Change,
    ChangeState,
    Edit,
    GateMeasure,
    Outcome,
    Phase,
    Quarantine,
    Version,
    utc_now,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlmodel import Session

    from daemon.runtime import Runtime


def promote(runtime: Runtime, cycle_id: int) -> None:
    """Promote, reject or hold the candidate of the cycle."""
    with runtime.database.transaction() as session:
        candidate = ledger.get_version(session, current_cycle(session, cycle_id).candidate_id or 0)
        comparisons = recorded_comparisons(session, candidate.id)
        decision, why = decide(comparisons), reasons(comparisons)
        if decision is Decision.PROMOTE:
            accept(session, candidate, why, runtime.settings.publish.names)
            advance(session, cycle_id, Phase.PUBLISH)
        elif decision is Decision.REJECT:
            refuse(session, candidate, why)
            finish(session, cycle_id, Outcome.REJECTED, why)
        else:
            finish(session, cycle_id, Outcome.HELD, why)
    runtime.log.info("decided", candidate=candidate.id, decision=decision.value, why=why)


def recorded_comparisons(session: Session, version_id: int) -> list[Comparison]:
    """What the gate measured for a version."""
    rows = select(GateMeasure).where(GateMeasure.version_id == version_id).order_by(col(GateMeasure.id))
    return [
        Comparison(
            row.measure, row.against, row.candidate, row.reference, row.threshold, row.n,
            Verdict(row.verdict), row.detail, row.loss, row.low, row.high, row.needed,
        )
        for row in session.exec(rows)
    ]  # fmt: skip


def accept(session: Session, version: Version, why: str, targets: Sequence[str]) -> None:
    """Make a version the promoted one, settle its changes and ask for its publication at the targets."""
    ledger.promote(session, version, why, utc_now())
    settle_changes(session, version)
    outbox.enqueue(session, version.id, targets)


def refuse(session: Session, candidate: Version, why: str) -> None:
    """Reject a candidate and quarantine its changes."""
    ledger.reject(session, candidate, why, utc_now())
    for change in session.exec(select(Change).where(Change.state == ChangeState.BATCHED)):
        quarantine(session, change, f"version {candidate.id} was rejected: {why}", candidate.id)


def settle_changes(session: Session, version: Version) -> None:
    """Changes written in the version are live, those written before and no longer are superseded."""
    edits = ledger.ledger_edits(session, version.id)
    written = {edit.change_id for edit in edits}
    for change in session.exec(select(Change).where(col(Change.id).in_(written))):
        change.state = ChangeState.LIVE
        session.add(change)
    for change in session.exec(select(Change).where(Change.state == ChangeState.LIVE)):
        if change.id not in written:
            change.state = ChangeState.SUPERSEDED
            session.add(change)
    # What is still marked as in work is a withdrawal: done by not being in the ledger.
    for change in session.exec(select(Change).where(Change.state == ChangeState.BATCHED)):
        change.state = ChangeState.WITHDRAWN
        session.add(change)
    _end_quarantine(session, edits)


def _end_quarantine(session: Session, edits: Sequence[Edit]) -> None:
    """What an earlier rollback had undone and the ledger has again is no longer kept out."""
    written, slots = {edit.change_id for edit in edits}, {(edit.qid, edit.pid) for edit in edits}
    kept_out = select(Quarantine, Change).join(Change, col(Change.id) == col(Quarantine.change_id))
    for kept, change in session.exec(kept_out.where(col(Quarantine.released_at).is_(None))).all():
        if change.id in written:
            kept.released_at = utc_now()
        elif kept.version_id is not None and (change.qid, change.pid) not in slots and not _has_edit(session, change):
            change.state = ChangeState.WITHDRAWN
            kept.released_at = utc_now()


def _has_edit(session: Session, change: Change) -> bool:
    return session.exec(select(Edit.id).where(Edit.change_id == change.id)).first() is not None
