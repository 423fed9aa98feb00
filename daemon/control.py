"""What an operator decides: rollback, approve or reject a held candidate, release from quarantine, pause."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlmodel import col, select

from daemon.batch import quarantine
from daemon.errors import NotPossible
from daemon.promote import accept, refuse
from daemon.publish import deliver
from store import ledger
from store.cycles import cycle_of, finish
from store.tables import Change, ChangeState, Control, Outcome, Quarantine, Version, VersionState, utc_now

if TYPE_CHECKING:
    from sqlmodel import Session

    from daemon.runtime import Runtime


PAUSED = "paused"


def rollback(runtime: Runtime, version_id: int | None) -> int:
    """Promote an older version again (by default the one before the present) and publish it.

    Facts that the older version does not hold are quarantined, so that the next cycle does not write them again.

    Raises:
        NotPossible: there is nothing to go back to.
        UnknownVersion, WrongState: no such version, or it was rejected.
        ArtifactCorrupt: its files are damaged; nothing is changed.
    """
    with runtime.database.read() as session:
        present = ledger.promoted(session)
        wanted = version_id if version_id is not None or present is None else present.parent_id
        if present is None or wanted is None:
            raise NotPossible("there is no earlier version to roll back to")
        target = ledger.get_version(session, wanted)
        if (
            ledger.held_candidate(session) is not None
            or session.exec(select(Change.id).where(Change.state == ChangeState.BATCHED).limit(1)).first()
        ):
            raise NotPossible("a candidate is in work: finish it (`once`) or decide on it (`approve`, `reject`) first")
    if target.id == present.id:
        raise NotPossible(f"version {target.id} is the promoted one already")
    if target.state is VersionState.CANDIDATE:
        raise NotPossible(f"version {target.id} is a candidate: use `factsyncd approve {target.id}`")
    runtime.artifacts.verify(target.id, target.digest)
    with runtime.database.transaction() as session:
        kept = {edit.change_id for edit in ledger.ledger_edits(session, target.id)}
        dropped = {edit.change_id for edit in ledger.ledger_edits(session, present.id)} - kept
        accept(session, target, f"rolled back from version {present.id} by an operator")
        for change in session.exec(select(Change).where(col(Change.id).in_(dropped))):
            quarantine(session, change, f"rolled back from version {present.id} by an operator", present.id)
    return deliver(runtime)


def approve(runtime: Runtime, version_id: int) -> int:
    """Promote a held candidate and publish it.

    Raises:
        NotPossible: it is not a held candidate.
        ArtifactCorrupt: its files are damaged; nothing is changed.
    """
    with runtime.database.read() as session:
        candidate = _held(session, version_id)
    runtime.artifacts.verify(candidate.id, candidate.digest)
    with runtime.database.transaction() as session:
        candidate = _held(session, version_id)
        accept(session, candidate, "approved by an operator")
        _finish_cycle_of(session, candidate, Outcome.PROMOTED, "approved by an operator")
    return deliver(runtime)


def reject(runtime: Runtime, version_id: int) -> None:
    """Reject a held candidate; its changes are quarantined."""
    with runtime.database.transaction() as session:
        candidate = _held(session, version_id)
        refuse(session, candidate, "rejected by an operator")
        _finish_cycle_of(session, candidate, Outcome.REJECTED, "rejected by an operator")


def release(runtime: Runtime, qid: str | None) -> int:
    """Let quarantined changes (of one subject, or all) be tried again; returns how many.

    A change that a later one of the same slot has overtaken stays where it is.
    """
    with runtime.database.transaction() as session:
        rows = select(Quarantine).where(col(Quarantine.released_at).is_(None))
        if qid is not None:
            rows = rows.where(Quarantine.qid == qid)
        released = 0
        for row in session.exec(rows.order_by(col(Quarantine.id))):
            row.released_at = utc_now()
            session.add(row)
            change = session.get(Change, row.change_id)
            if change is not None and change.state is ChangeState.QUARANTINED and not _overtaken(session, change):
                change.state = ChangeState.PENDING
                session.add(change)
                released += 1
    return released


def set_paused(runtime: Runtime, *, paused: bool) -> None:
    """Stop or restart scheduled cycles; outlives a restart of the service."""
    with runtime.database.transaction() as session:
        session.merge(Control(key=PAUSED, value="yes" if paused else "no", updated_at=utc_now()))


def is_paused(runtime: Runtime) -> bool:
    """Whether scheduled cycles are stopped."""
    with runtime.database.read() as session:
        control = session.get(Control, PAUSED)
    return control is not None and control.value == "yes"


def _held(session: Session, version_id: int) -> Version:
    waiting = ledger.held_candidate(session)
    if waiting is None or waiting.id != version_id:
        what = "no candidate waits" if waiting is None else f"version {waiting.id} waits"
        raise NotPossible(f"version {version_id} is not a held candidate: {what} for a decision")
    return waiting


def _finish_cycle_of(session: Session, candidate: Version, outcome: Outcome, detail: str) -> None:
    cycle = cycle_of(session, candidate.id)
    assert cycle is not None
    assert cycle.id is not None
    finish(session, cycle.id, outcome, detail)


def _overtaken(session: Session, change: Change) -> bool:
    later = select(Change.id).where(
        Change.qid == change.qid, Change.pid == change.pid, col(Change.revision) > change.revision
    )
    return session.exec(later.limit(1)).first() is not None
