"""Promote: decide by what was measured, and flip the versions' states in one transaction; or try again without some."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlmodel import col, select

from daemon import outbox
from daemon.bisection import Untried
from daemon.candidate import make_candidate
from daemon.gate import Decision
from daemon.quarantine import quarantine, retry_time
from daemon.trials import Trials, left_out
from store import ledger
from store.cycles import advance, current_cycle, finish
from store.tables import (
    Change,
    ChangeState,
    Edit,
    Outcome,
    Phase,
    Quarantine,
    Trial,
    Version,
    VersionState,
    utc_now,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlmodel import Session

    from daemon import bisection
    from daemon.bisection import Found
    from daemon.config import TrialsSection
    from daemon.runtime import Runtime


def promote(runtime: Runtime, cycle_id: int) -> None:
    """Promote, reject or hold the candidate of the cycle, or try another one without what seems to harm."""
    with runtime.database.transaction() as session:
        trials = Trials(session, cycle_id, runtime.settings)
        try:
            found = trials.search()
        except Untried as wanted:
            _try(runtime, session, cycle_id, trials, wanted.trial)
            return
        said = _end(runtime, session, cycle_id, trials, found)
    runtime.log.info("decided", **said)
    _discard(runtime, cycle_id)


def _try(runtime: Runtime, session: Session, cycle_id: int, trials: Trials, trial: bisection.Trial) -> None:
    """Send the cycle back to the edit phase with another candidate of its batch."""
    cycle = current_cycle(session, cycle_id)
    last = trials.measured[-1]
    former = ledger.get_version(session, last.version_id)
    digests = (former.base_digest, former.settings_digest)
    candidate = make_candidate(
        runtime, session, cycle_id, trials.changes, digests, trial.withheld, trial.raised
    )  # fmt: skip
    cycle.candidate_id = candidate.id
    advance(session, cycle_id, Phase.EDIT, trials=len(trials.measured) + 1)
    runtime.log.warning(
        "another trial", candidate=candidate.id, after=last.version_id, decision=last.decision.value, why=last.why,
        withheld=len(trial.withheld), raised=len(trial.raised),
    )  # fmt: skip


def _end(runtime: Runtime, session: Session, cycle_id: int, trials: Trials, found: Found) -> dict[str, object]:
    """Decide on the trial that the search ends with; the others are rejected, and what they lack kept out."""
    chosen = trials.measured[0] if found.trial is None else trials.of(found.trial)
    candidate = ledger.get_version(session, chosen.version_id)
    current_cycle(session, cycle_id).candidate_id = candidate.id
    for other in trials.measured:
        if other is not chosen:
            rejected = ledger.get_version(session, other.version_id)
            ledger.reject(
                session, rejected, f"a trial, in place of which is version {candidate.id}: {other.why}", utc_now()
            )
    for change in left_out(trials.changes, chosen.trial.withheld):
        reason, shown_by = trials.reason(found, change.group)
        quarantine(session, change, reason, shown_by, retry_time(session, change, runtime.settings.trials))
    session.flush()
    if chosen.decision is Decision.PROMOTE:
        accept(session, candidate, chosen.why, runtime.settings.publish.names)
        advance(session, cycle_id, Phase.PUBLISH, quarantined=len(chosen.trial.withheld))
    elif chosen.decision is Decision.REJECT:
        refuse(session, candidate, chosen.why, runtime.settings.trials)
        finish(session, cycle_id, Outcome.REJECTED, chosen.why)
    else:
        finish(session, cycle_id, Outcome.HELD, chosen.why, quarantined=len(chosen.trial.withheld))
    return {
        "candidate": candidate.id, "decision": chosen.decision.value, "why": chosen.why,
        "trials": len(trials.measured), "quarantined": len(chosen.trial.withheld),
    }  # fmt: skip


def _discard(runtime: Runtime, cycle_id: int) -> None:
    """Delete the files of trials that were not chosen; what was measured of them stays."""
    with runtime.database.transaction() as session:
        chosen = current_cycle(session, cycle_id).candidate_id
        trials = select(Version).join(Trial, col(Trial.version_id) == col(Version.id))
        rejected = session.exec(
            trials.where(Trial.cycle_id == cycle_id, Version.id != chosen, Version.state == VersionState.REJECTED)
        ).all()
        for version in rejected:
            version.path = None
    for version in rejected:
        runtime.artifacts.remove(version.id)


def accept(session: Session, version: Version, why: str, targets: Sequence[str]) -> None:
    """Make a version the promoted one, settle its changes and ask for its publication at the targets."""
    ledger.promote(session, version, why, utc_now())
    settle_changes(session, version)
    outbox.enqueue(session, version.id, targets)


def refuse(session: Session, candidate: Version, why: str, retry: TrialsSection | None = None) -> None:
    """Reject a candidate and quarantine its changes, to be tried again where it was the gate that rejected it."""
    ledger.reject(session, candidate, why, utc_now())
    for change in session.exec(select(Change).where(Change.state == ChangeState.BATCHED)):
        again = None if retry is None else retry_time(session, change, retry)
        quarantine(session, change, f"version {candidate.id} was rejected: {why}", candidate.id, again)


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
