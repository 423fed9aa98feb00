"""What an operator decides: rollback, approve or reject a held candidate, release from quarantine, pause."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlmodel import col, select

from daemon.breaker import acknowledge
from daemon.deliver import deliver
from daemon.errors import NotPossible
from daemon.promote import accept, refuse
from daemon.publish import require_published
from daemon.quarantine import quarantine
from daemon.quarantine import release as release_quarantined
from store import ledger
from store.changes import newest_change
from store.cycles import cycle_of, finish
from store.tables import Change, ChangeState, Control, Edit, Outcome, Version, VersionState, utc_now

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlmodel import Session

    from daemon.runtime import Runtime


PAUSED = "paused"


def rollback(runtime: Runtime, version_id: int | None) -> int:
    """Promote an older version again (by default the one before the present) and publish it.

    Facts that the older version does not hold are quarantined, so that the next cycle does not write them again, and so
    are withdrawals of edits that are live in it.

    Raises:
        NotPossible: there is nothing to go back to, or its files are not kept any more.
        NotPublished: it is promoted, and a target does not answer with it yet.
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
    if target.path is None and not runtime.artifacts.path(target.id).exists():
        raise NotPossible(f"the files of version {target.id} are not kept any more: see `factsyncd versions`")
    runtime.artifacts.verify(target.id, target.digest)
    with runtime.database.transaction() as session:
        edits = ledger.ledger_edits(session, target.id)
        dropped = {edit.change_id for edit in ledger.ledger_edits(session, present.id)}
        dropped -= {edit.change_id for edit in edits}
        # A change that a later one has overtaken (a withdrawal, where this rolls forward) is not what is undone.
        undone = [
            change
            for change in session.exec(select(Change).where(col(Change.id).in_(dropped)))
            if newest_change(session, change.qid, change.pid) is change
        ]
        undone += _withdrawals_of(session, edits)
        why = f"rolled back from version {present.id} by an operator"
        accept(session, target, why, runtime.settings.publish.names)
        for change in undone:
            quarantine(session, change, why, present.id)
    deliver(runtime)
    require_published(runtime, target.id)
    return target.id


def _withdrawals_of(session: Session, edits: Sequence[Edit]) -> list[Change]:
    """What took edits out of the ledger later, and was the last word about its slot."""
    newest = (newest_change(session, edit.qid, edit.pid) for edit in edits)
    return [change for change in newest if change is not None and change.state is ChangeState.WITHDRAWN]


def approve(runtime: Runtime, version_id: int) -> int:
    """Promote a held candidate and publish it.

    Raises:
        NotPossible: it is not a held candidate.
        NotPublished: it is promoted, and a target does not answer with it yet.
        ArtifactCorrupt: its files are damaged; nothing is changed.
    """
    with runtime.database.read() as session:
        candidate = _held(session, version_id)
    runtime.artifacts.verify(candidate.id, candidate.digest)
    with runtime.database.transaction() as session:
        candidate = _held(session, version_id)
        accept(session, candidate, "approved by an operator", runtime.settings.publish.names)
        _finish_cycle_of(session, candidate, Outcome.PROMOTED, "approved by an operator")
    deliver(runtime)
    require_published(runtime, candidate.id)
    return candidate.id


def reject(runtime: Runtime, version_id: int) -> None:
    """Reject a held candidate; its changes are quarantined."""
    with runtime.database.transaction() as session:
        candidate = _held(session, version_id)
        refuse(session, candidate, "rejected by an operator")
        _finish_cycle_of(session, candidate, Outcome.REJECTED, "rejected by an operator")


def release(runtime: Runtime, qid: str | None) -> int:
    """Let quarantined changes (of one subject, or all) be tried again; returns how many."""
    with runtime.database.transaction() as session:
        return release_quarantined(session, lambda row: qid in (None, row.qid))


def pause(runtime: Runtime) -> None:
    """Stop scheduled cycles; outlives a restart of the service."""
    with runtime.database.transaction() as session:
        session.merge(Control(key=PAUSED, value="yes", updated_at=utc_now()))


def resume(runtime: Runtime) -> None:
    """Restart scheduled cycles, and let go what the rate breaker holds."""
    with runtime.database.transaction() as session:
        session.merge(Control(key=PAUSED, value="no", updated_at=utc_now()))
        acknowledge(session)


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
