"""Which versions' files stay: never removed is what a link, an engine or an unfinished publication needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlmodel import col, select

from daemon import outbox
from daemon.publishers import adapters_directory
from daemon.runtime import BASE_VERSION
from daemon.targets import DirectoryTarget
from store import durable
from store.ledger import promoted
from store.tables import Publication, PublicationState, Version, VersionState

if TYPE_CHECKING:
    from sqlmodel import Session

    from daemon.runtime import Runtime
    from daemon.targets import Target


def copies_needed(session: Session, target: Target) -> set[int]:
    """Versions whose copies a directory keeps, beside the one that is being published to it."""
    if not isinstance(target, DirectoryTarget):
        return set()
    recent = list(
        dict.fromkeys(
            session.exec(
                select(Publication.version_id)
                .where(Publication.target == target.name, Publication.state == PublicationState.DELIVERED)
                .order_by(col(Publication.id).desc())
            )
        )
    )
    return set(recent[: target.keep - 1]) | _in_use(session)


def prune(runtime: Runtime) -> None:
    """Remove the files of retired and rejected versions but the newest; their rows and digests stay.

    Raises:
        StoreError: the state cannot be written.
    """
    keep = runtime.settings.publish.keep
    if keep == 0:
        return
    with runtime.database.read() as session:
        needed = _needed(runtime, session)
        over = select(Version).where(col(Version.state).in_((VersionState.RETIRED, VersionState.REJECTED)))
        spare = [v.id for v in session.exec(over.order_by(col(Version.id).desc())) if v.id not in needed]
        # Trials lost their files when their cycle ended, and take no place from versions to roll back to.
        doomed = [number for number in spare if runtime.artifacts.path(number).exists()][keep:]
    if not doomed:
        return
    # The row first: a kill between the two leaves files that the next round removes.
    with runtime.database.transaction() as session:
        for version in session.exec(select(Version).where(col(Version.id).in_(doomed))):
            version.path = None
    for number in doomed:
        runtime.artifacts.remove(number)
        for adapter in adapters_directory(runtime.settings).glob(f"rank-*/v{number}"):
            durable.delete(adapter)
    runtime.log.info("files of old versions removed", versions=doomed)


def _needed(runtime: Runtime, session: Session) -> set[int]:
    present = promoted(session)
    needed = {BASE_VERSION, *_in_use(session)}
    if present is not None:
        needed |= {present.id} | ({present.parent_id} if present.parent_id is not None else set())
    links = (runtime.settings.link_of(t) for t in runtime.settings.publish.targets if isinstance(t, DirectoryTarget))
    led_to = {link.resolve() for link in links}
    numbers = session.exec(select(Version.id)).all()
    return needed | {number for number in numbers if runtime.artifacts.path(number).resolve() in led_to}


def _in_use(session: Session) -> set[int]:
    """Versions that targets have or are to get."""
    waiting = session.exec(select(Publication.version_id).where(Publication.state == PublicationState.PENDING))
    held = (outbox.held_by(session, name) for name in session.exec(select(Publication.target).distinct()).all())
    return {*waiting, *(number for number in held if number is not None)}
