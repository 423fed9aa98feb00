"""Publish: make the targets answer with the promoted version, each by itself, until they do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from daemon import outbox
from daemon.deliver import deliver, publisher_of, release_of
from daemon.errors import NotPossible, NotPublished
from daemon.follow_up import follow_up
from daemon.targets import DirectoryTarget
from store.cycles import finish
from store.ledger import get_version, promoted
from store.tables import Outcome, PublicationState, Version

if TYPE_CHECKING:
    from sqlmodel import Session

    from daemon.runtime import Runtime


def publish(runtime: Runtime, cycle_id: int) -> None:
    """Deliver the promoted version, ask it what the one before was asked, and end the cycle.

    What a target does not take now is tried again later.

    Raises:
        StoreError, EditorError: the version cannot be asked; it is in the outbox, and the next call tries again.
    """
    deliver(runtime)
    follow_up(runtime)
    with runtime.database.transaction() as session:
        version = _promoted(session)
        missing = _missing(session, runtime.settings.publish.names, version.id)
        told = f"promoted; not yet published: {missing}" if missing else "promoted and published"
        finish(session, cycle_id, Outcome.PROMOTED, f"version {version.id} is {told}")


def publish_again(runtime: Runtime, name: str | None) -> int:
    """Ask for the promoted version at a target once more (by default at all), and deliver it.

    Raises:
        NotPossible: no such target.
        NotPublished: a target does not answer with it.
    """
    names = runtime.settings.publish.names
    if name is not None and name not in names:
        raise NotPossible(f"no target is called {name!r}: there are {', '.join(names)}")
    with runtime.database.transaction() as session:
        version = _promoted(session)
        outbox.enqueue(session, version.id, names if name is None else (name,))
    deliver(runtime)
    require_published(runtime, version.id)
    return version.id


def require_published(runtime: Runtime, version_id: int) -> None:
    """See that all targets answer with the promoted version.

    Raises:
        NotPublished: some do not yet.
    """
    with runtime.database.read() as session:
        missing = _missing(session, runtime.settings.publish.names, version_id)
    if missing:
        raise NotPublished(
            f"version {version_id} is promoted, and not all targets answer with it yet ({missing}): "
            "`factsyncd run` tries again by itself, `factsyncd publish` at once"
        )


def begin(runtime: Runtime) -> None:
    """Bring targets that never had a version to the promoted one, and set links again that are gone."""
    targets = runtime.settings.publish.targets
    with runtime.database.transaction() as session:
        outbox.drop_unknown(session, runtime.settings.publish.names)
        version = _promoted(session)
        news = [target.name for target in targets if outbox.newest_of(session, target.name) is None]
        outbox.enqueue(session, version.id, news)
        lost = {
            target.name: number
            for target in targets
            if isinstance(target, DirectoryTarget) and (number := _lost(runtime, session, target)) is not None
        }
        for name, number in lost.items():
            outbox.enqueue(session, number, [name])
    if news or lost:
        deliver(runtime)


def _lost(runtime: Runtime, session: Session, target: DirectoryTarget) -> int | None:
    """The version that a directory should have and has not, unless one is on its way."""
    number = outbox.held_by(session, target.name)
    if number is None or session.exec(outbox.pending_of(target.name)).first() is not None:
        return None
    holds = publisher_of(runtime, session, target).holds(release_of(runtime, get_version(session, number)))
    return None if holds else number


def _promoted(session: Session) -> Version:
    version = promoted(session)
    assert version is not None  # made when the state was set up
    return version


def _missing(session: Session, names: tuple[str, ...], version_id: int) -> str:
    """Targets that do not answer with a version, and why."""
    newest = {name: outbox.newest_of(session, name, version_id) for name in names}
    return "; ".join(
        f"{name} ({row.detail or row.state.value})"
        for name, row in newest.items()
        if row is not None and row.state is not PublicationState.DELIVERED
    )
