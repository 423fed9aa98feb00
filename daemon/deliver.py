"""Delivery of what is in the outbox: at least once, in any order of failures, one target never waiting for another."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from typing import TYPE_CHECKING

from daemon import outbox
from daemon.confirm import confirm, questions
from daemon.errors import Disagrees, PublishFailed
from daemon.publishers import Publisher, Release, open_publisher
from daemon.retention import copies_needed, prune
from daemon.runtime import BASE_VERSION
from daemon.targets import DirectoryTarget
from editor import Interrupted
from store.ledger import get_version
from store.tables import Publication, PublicationState, key, utc_now

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlmodel import Session

    from daemon.runtime import Runtime
    from daemon.targets import Target
    from store.tables import Version

ROUNDS = 2
"""A target whose engine disagrees is brought back to its former version in the second."""
_GLANCE_SECONDS = 0.2


def deliver(runtime: Runtime) -> None:
    """Try all publications whose time has come, and record how each ended.

    Directories come first, so that an engine finds there what it is told to load. The others are tried at once.

    Raises:
        Interrupted: a stop was asked for; what was not delivered stays pending.
        StoreError: the outbox cannot be read or written.
    """
    targets = {target.name: target for target in runtime.settings.publish.targets}
    with runtime.delivering:
        for _ in range(ROUNDS):
            with runtime.database.read() as session:
                rows = outbox.due(session, targets.keys(), utc_now())
            works = {key(row): partial(_attempt, runtime, targets[row.target], key(row)) for row in rows}
            local = {key(row) for row in rows if isinstance(targets[row.target], DirectoryTarget)}
            for number in local:
                works[number]()
            _at_once([work for number, work in works.items() if number not in local], runtime)
        prune(runtime)


def publisher_of(runtime: Runtime, session: Session, target: Target) -> Publisher:
    """The publisher of a target."""
    base = release_of(runtime, get_version(session, BASE_VERSION))
    return open_publisher(runtime.settings, runtime.artifacts, target, base, copies_needed(session, target))


def release_of(runtime: Runtime, version: Version, publication: str = "") -> Release:
    """A version as publishers see it."""
    return Release(version.id, version.digest or "", runtime.artifacts.path(version.id), publication)


def _at_once(works: Sequence[Callable[[], None]], runtime: Runtime) -> None:
    """Do works in threads of their own and wait for all of them, looking for a stop meanwhile."""
    if not works:
        return
    with ThreadPoolExecutor(len(works), thread_name_prefix="publish") as pool:
        futures = [pool.submit(work) for work in works]
        while (state := wait(futures, timeout=_GLANCE_SECONDS)).not_done:
            runtime.progress("publishing", len(state.done), len(works))
        for future in futures:
            future.result()


def _attempt(runtime: Runtime, target: Target, publication_id: int) -> None:
    """Try one publication and record how it ended."""
    settings = runtime.settings.publish
    with runtime.database.read() as session:
        version = get_version(session, session.get_one(Publication, publication_id).version_id)
        held = outbox.held_by(session, target.name)
        # A target that is thought to have the version already has nothing to go back to.
        previous = None if held is None or held == version.id else get_version(session, held)
        asked = questions(
            session, version.id, outbox.held_by(session, target.name, other_than=version.id), settings.confirm
        )
        publisher = publisher_of(runtime, session, target)
    name = f"{target.name}-{publication_id}-{(version.digest or '')[:12]}"
    failure: Exception | None = None
    try:
        with runtime.metrics.publications.attempt(target.name):
            publisher.publish(
                release_of(runtime, version, name), None if previous is None else release_of(runtime, previous, name)
            )
            if target.asked_at is not None:
                confirm(target, asked, settings.confirm, lambda: runtime.progress("confirming", 0, 1))
    except Interrupted:
        raise
    except Exception as error:  # noqa: BLE001 - whatever is wrong with one target must not hold back the others
        failure = error
    with runtime.database.transaction() as session:
        row = session.get_one(Publication, publication_id)
        # A later promotion may have superseded it meanwhile: that is delivered after this one.
        if row.state is PublicationState.PENDING:
            _settle(runtime, session, row, previous, failure)
    _tell(runtime, row, failure)


def _settle(
    runtime: Runtime, session: Session, row: Publication, previous: Version | None, failure: Exception | None
) -> None:
    if failure is None:
        outbox.delivered(row)
    elif isinstance(failure, Disagrees):
        outbox.disagreed(row, str(failure))
        if previous is not None:
            session.flush()
            outbox.enqueue(session, previous.id, [row.target])
    else:
        outbox.put_off(row, _reason(failure), runtime.settings.publish)


def _tell(runtime: Runtime, row: Publication, failure: Exception | None) -> None:
    log = runtime.log.bind(target=row.target, version=row.version_id)
    if failure is None:
        log.info("published")
    elif isinstance(failure, Disagrees):
        log.error("publication not confirmed", detail=str(failure))
    else:
        unforeseen = None if isinstance(failure, PublishFailed) else failure
        log.error(
            "publication failed", attempt=row.attempts, next=row.next_at.isoformat(timespec="seconds"),
            detail=_reason(failure), exc_info=unforeseen,
        )  # fmt: skip


def _reason(failure: Exception) -> str:
    text = " ".join(str(failure).split())
    return text if isinstance(failure, PublishFailed) else f"{type(failure).__name__}: {text}"
