"""Changes of one slot: each new one overtakes those before it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlmodel import col, select

from store.tables import Change, ChangeState

if TYPE_CHECKING:
    from sqlmodel import Session


def record_change(session: Session, change: Change) -> None:
    """Add the newest change of a slot and give it its number; one that still waits is overtaken."""
    waiting = select(Change).where(
        Change.qid == change.qid, Change.pid == change.pid, Change.state == ChangeState.PENDING
    )
    for overtaken in session.exec(waiting):
        overtaken.state = ChangeState.SUPERSEDED
    session.add(change)
    session.flush()


def newest_change(session: Session, qid: str, pid: str) -> Change | None:
    """Find the change of a slot that was recorded last."""
    changes = select(Change).where(Change.qid == qid, Change.pid == pid).order_by(col(Change.id).desc())
    return session.exec(changes.limit(1)).first()
