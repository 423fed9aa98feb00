"""Publish: make the serving side answer with the promoted version; here, swap the ``current`` link."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlmodel import select

from daemon.follow_up import follow_up
from store import point_current
from store.cycles import finish
from store.ledger import promoted
from store.tables import Outcome, Publication, PublicationState, utc_now

if TYPE_CHECKING:
    from daemon.runtime import Runtime


def publish(runtime: Runtime, cycle_id: int) -> None:
    """Deliver the promoted version, ask it what the one before was asked, and end the cycle.

    Raises:
        StateUnwritable: the link cannot be written.
        StoreError, EditorError: the version cannot be asked; it is published, and the next call tries again.
    """
    version_id = deliver(runtime)
    follow_up(runtime)
    with runtime.database.transaction() as session:
        finish(session, cycle_id, Outcome.PROMOTED, f"version {version_id} is promoted and published")


def deliver(runtime: Runtime) -> int:
    """Swap the link to the promoted version and settle the outbox; doing it again changes nothing.

    Raises:
        StateUnwritable: the link cannot be written; the publication stays pending.
    """
    with runtime.database.read() as session:
        version = promoted(session)
    assert version is not None  # made when the state was set up
    point_current(runtime.settings.current_link, runtime.artifacts.path(version.id))
    with runtime.database.transaction() as session:
        waiting = select(Publication).where(Publication.state == PublicationState.PENDING)
        for publication in session.exec(waiting):
            delivered = publication.version_id == version.id
            publication.state = PublicationState.DELIVERED if delivered else PublicationState.FAILED
            publication.detail = "" if delivered else f"overtaken by version {version.id}"
            publication.attempts += 1
            publication.delivered_at = utc_now() if delivered else None
            session.add(publication)
    runtime.log.info("published", version=version.id, link=str(runtime.settings.current_link))
    return version.id
