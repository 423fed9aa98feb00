"""Unread items: what the source could not tell although it was asked for alone is asked for again, ever less often."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from sqlmodel import col, select

from store.tables import UnreadItem, utc_now

if TYPE_CHECKING:
    from collections.abc import Collection

    from sqlmodel import Session

    from sources import Page

FIRST_WAIT, LONGEST_WAIT = timedelta(minutes=5), timedelta(days=1)


def note_page(session: Session, page: Page) -> None:
    """Keep the items that a page could not tell about, and forget those that it could."""
    failed = {item.qid: item.reason for item in page.failed}
    told = {seen.qid for seen in page.observations}
    for known in session.exec(select(UnreadItem)).all():
        if known.qid in failed:
            known.attempts += 1
            known.reason = failed.pop(known.qid)
            known.next_at = utc_now() + min(LONGEST_WAIT, FIRST_WAIT * 2 ** min(known.attempts - 1, 16))
        elif known.qid in told:
            session.delete(known)
    session.add_all(
        UnreadItem(qid=qid, reason=reason, attempts=1, next_at=utc_now() + FIRST_WAIT) for qid, reason in failed.items()
    )


def due(session: Session) -> list[str]:
    """Items whose time has come."""
    return list(session.exec(select(UnreadItem.qid).where(col(UnreadItem.next_at) <= utc_now())))


def forget(session: Session, qids: Collection[str]) -> None:
    """Give up items that are not at the source."""
    for known in session.exec(select(UnreadItem).where(col(UnreadItem.qid).in_(qids))).all():
        session.delete(known)
