"""Changes of one slot: each new one overtakes those before it, and takes over from those that were never written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy.orm import aliased
from sqlmodel import col, select

from store.ledger import live_edit, was_ever_live
from store.tables import Change, ChangeState, Quarantine, Values, key, utc_now, value_ids

if TYPE_CHECKING:
    from sqlmodel import Session

OPEN = (ChangeState.SETTLING, ChangeState.PENDING, ChangeState.QUARANTINED)
"""States of a change that is written in no version and in no candidate."""
IN_PLAY = (*OPEN, ChangeState.BATCHED, ChangeState.LIVE)
"""States of a change that is written, or may come to be."""


def record_change(session: Session, change: Change) -> Change | None:
    """Add the newest change of a slot and give it its number.

    Open changes of the slot are superseded. The new one leads from where the overtaken one began, and if that is where
    it ends, it is ``reverted``: nothing remains to be done.

    Args:
        session: of the transaction that records.
        change: from the values recorded last to the present ones; settling, or quarantined.

    Returns:
        The open change that it overtook and merged with.

    """
    last = newest_change(session, change.qid, change.pid)
    overtaken = last if last is not None and last.state in OPEN else None
    for each in changes_in(session, change.qid, change.pid, OPEN):
        each.state = ChangeState.SUPERSEDED
        _end_quarantine(session, each)
    if overtaken is not None:
        change.old_values = overtaken.old_values
        if change.state is ChangeState.SETTLING and _nothing_remains(session, change):
            change.state = ChangeState.REVERTED
            change.reason = f"back to what it was before change {overtaken.id}, which was not written"
    session.add(change)
    session.flush()
    return overtaken


def supersede_overtaken(session: Session) -> int:
    """Supersede open changes of which the slot has a newer change; returns how many.

    When that one was recorded they were part of a candidate, which was not promoted after all.
    """
    newer = aliased(Change)
    overtaken = select(Change).where(
        col(Change.state).in_(OPEN),
        select(newer.id)
        .where(newer.qid == Change.qid, newer.pid == Change.pid, col(newer.id) > col(Change.id))
        .exists(),
    )
    changes = session.exec(overtaken).all()
    for change in changes:
        change.state = ChangeState.SUPERSEDED
        _end_quarantine(session, change)
    return len(changes)


def values_left(session: Session, change: Change, written: Change | None) -> Values:
    """What the promoted version was left with for a change's slot, whatever was recorded since without being written.

    Args:
        session: to look further back.
        change: of the slot, open.
        written: the change whose edit of the slot is live, if any.

    """
    if written is not None:
        return written.new_values
    earlier = select(Change).where(Change.qid == change.qid, Change.pid == change.pid, col(Change.id) < key(change))
    first = change
    for former in session.exec(earlier.order_by(col(Change.id).desc())):
        if former.state is ChangeState.HELD:
            return former.new_values
        first = former
    return first.old_values


def newest_change(session: Session, qid: str, pid: str) -> Change | None:
    """Find the change of a slot that was recorded last."""
    changes = select(Change).where(Change.qid == qid, Change.pid == pid).order_by(col(Change.id).desc())
    return session.exec(changes.limit(1)).first()


def changes_in(session: Session, qid: str, pid: str, states: tuple[ChangeState, ...]) -> list[Change]:
    """The changes of a slot that are in one of the states, oldest first."""
    wanted = select(Change).where(Change.qid == qid, Change.pid == pid, col(Change.state).in_(states))
    return list(session.exec(wanted.order_by(col(Change.id))))


def in_play(session: Session, qid: str, pid: str) -> bool:
    """Whether an edit of a slot is live or may come to be, so that its wording matters."""
    wanted = select(Change.id).where(Change.qid == qid, Change.pid == pid, col(Change.state).in_(IN_PLAY))
    return session.exec(wanted.limit(1)).first() is not None


def expanded_from(session: Session, change: Change, states: tuple[ChangeState, ...]) -> list[Change]:
    """The changes that were expanded from one and are in one of the states, oldest first."""
    wanted = select(Change).where(Change.origin_id == key(change), col(Change.state).in_(states))
    return list(session.exec(wanted.order_by(col(Change.id))))


def _nothing_remains(session: Session, change: Change) -> bool:
    """Whether what a merged change says is what the model was left with; where that is in doubt, it is asked."""
    if changes_in(session, change.qid, change.pid, (ChangeState.BATCHED,)):
        return False  # the candidate that says otherwise may be promoted or rejected
    edit = live_edit(session, change.qid, change.pid)
    if edit is not None:
        written = session.get_one(Change, edit.change_id)
        return written.new_values == change.new_values and edit.subject == change.subject_label
    # A rollback may have left the model with an older value than the one that was recorded.
    same = value_ids(change.old_values) == value_ids(change.new_values)
    return same and not was_ever_live(session, change.qid, change.pid)


def _end_quarantine(session: Session, change: Change) -> None:
    kept_out = select(Quarantine).where(Quarantine.change_id == key(change), col(Quarantine.released_at).is_(None))
    for row in session.exec(kept_out):
        row.released_at = utc_now()
