"""Quarantine: changes that are kept out of the weights, until an operator releases them or their time has come."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from sqlmodel import col, func, select

from daemon.answers import unspeakable
from store.changes import newest_change
from store.tables import Change, ChangeState, Quarantine, key, utc_now

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from sqlmodel import Session

    from daemon.config import TrialsSection


def quarantine(
    session: Session, change: Change, reason: str, version_id: int | None, retry_at: datetime | None = None
) -> None:
    """Keep a change out, with the reason, and with the version that showed it."""
    change.state = ChangeState.QUARANTINED
    session.add(change)
    session.add(
        Quarantine(
            change_id=key(change), qid=change.qid, pid=change.pid, reason=reason, version_id=version_id,
            retry_at=retry_at,
        )
    )  # fmt: skip


def retry_time(session: Session, change: Change, settings: TrialsSection) -> datetime | None:
    """When a change that harmed is tried again: later each time, and after some tries only by an operator."""
    by_the_gate = select(func.count()).where(
        Quarantine.change_id == key(change), col(Quarantine.version_id).is_not(None)
    )
    tries = session.exec(by_the_gate).one()
    return utc_now() + timedelta(seconds=settings.retry_seconds * 2**tries) if tries < settings.retries else None


def release(session: Session, wanted: Callable[[Quarantine], bool]) -> int:
    """Let quarantined changes be tried again; returns how many.

    The other direction of a fact is released with it. A change that a later one of the same slot has overtaken stays
    where it is, and what has no usable labels is kept out again.
    """
    kept_out = select(Quarantine, Change).join(Change, col(Change.id) == col(Quarantine.change_id))
    rows = session.exec(kept_out.where(col(Quarantine.released_at).is_(None)).order_by(col(Quarantine.id))).all()
    groups = {change.group for row, change in rows if wanted(row)}
    without = {change.group: why for _, change in rows if (why := unspeakable(change)) is not None}
    released = 0
    for row, change in rows:
        if change.group not in groups:
            continue
        row.released_at = utc_now()
        if change.state is ChangeState.QUARANTINED and newest_change(session, change.qid, change.pid) is change:
            if change.group in without:
                quarantine(session, change, without[change.group], None)
                continue
            change.state = ChangeState.PENDING
            released += 1
    return released


def release_due(session: Session) -> int:
    """Release what waits for a moment that has come; returns how many changes."""
    now = utc_now()
    return release(session, lambda row: row.retry_at is not None and row.retry_at <= now)
