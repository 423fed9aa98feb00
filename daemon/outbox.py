"""The outbox: which version each target must come to answer with, and which one it was last brought to."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from sqlmodel import col, select

from store.tables import Publication, PublicationState, utc_now

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from datetime import datetime

    from sqlmodel import Session
    from sqlmodel.sql.expression import SelectOfScalar

    from daemon.targets import PublishSection

_LONGEST_DETAIL = 500


def enqueue(session: Session, version_id: int, targets: Iterable[str]) -> None:
    """Ask for a version at targets; what was not delivered to them before is superseded."""
    for target in targets:
        for waiting in session.exec(pending_of(target)):
            _supersede(waiting, f"overtaken by version {version_id}")
        # Before the new row, or the database would see two pending ones for an instant.
        session.flush()
        session.add(Publication(version_id=version_id, target=target))


def drop_unknown(session: Session, targets: Collection[str]) -> None:
    """Give up what waits for targets that are not configured any more."""
    waiting = select(Publication).where(Publication.state == PublicationState.PENDING)
    for publication in session.exec(waiting.where(col(Publication.target).not_in(targets))):
        _supersede(publication, "the target is not configured any more")


def due(session: Session, targets: Collection[str], now: datetime) -> list[Publication]:
    """What is to be tried now, oldest first."""
    waiting = select(Publication).where(Publication.state == PublicationState.PENDING, Publication.next_at <= now)
    return list(session.exec(waiting.where(col(Publication.target).in_(targets)).order_by(col(Publication.id))))


def pending_of(target: str) -> SelectOfScalar[Publication]:
    """The query for what waits for a target: one publication or none."""
    return select(Publication).where(Publication.target == target, Publication.state == PublicationState.PENDING)


def newest_of(session: Session, target: str, version_id: int | None = None) -> Publication | None:
    """The last publication to a target (of a version)."""
    rows = select(Publication).where(Publication.target == target).order_by(col(Publication.id).desc()).limit(1)
    return session.exec(rows if version_id is None else rows.where(Publication.version_id == version_id)).first()


def held_by(session: Session, target: str, other_than: int | None = None) -> int | None:
    """The version that a target was last brought to (and that is not a given one); None where there is none."""
    rows = select(Publication.version_id).where(
        Publication.target == target, Publication.state == PublicationState.DELIVERED
    )
    if other_than is not None:
        rows = rows.where(Publication.version_id != other_than)
    return session.exec(rows.order_by(col(Publication.id).desc()).limit(1)).first()


def delivered(publication: Publication) -> None:
    """The target answers with the version."""
    publication.state, publication.detail = PublicationState.DELIVERED, ""
    publication.attempts += 1
    publication.delivered_at = utc_now()


def disagreed(publication: Publication, why: str) -> None:
    """The target took the version, and its engine answers otherwise: to try again would change nothing."""
    publication.state, publication.detail = PublicationState.FAILED, why[:_LONGEST_DETAIL]
    publication.attempts += 1


def put_off(publication: Publication, why: str, settings: PublishSection) -> None:
    """The attempt failed: try again after a time that doubles with each attempt, up to a bound."""
    wait = min(settings.retry_seconds * 2.0 ** min(publication.attempts, 60), settings.retry_max_seconds)
    publication.attempts += 1
    publication.detail = why[:_LONGEST_DETAIL]
    publication.next_at = utc_now() + timedelta(seconds=wait)


def _supersede(publication: Publication, why: str) -> None:
    publication.state, publication.detail = PublicationState.SUPERSEDED, why
