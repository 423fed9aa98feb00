"""The drift watch: do targets still have what they were brought to? An engine may have restarted with old weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from daemon import outbox
from daemon.confirm import check, questions
from daemon.deliver import deliver, publisher_of, release_of
from daemon.errors import Disagrees, PublishFailed
from store.ledger import get_version
from store.tables import PublicationState

if TYPE_CHECKING:
    from daemon.runtime import Runtime
    from daemon.targets import Target


def watch(runtime: Runtime) -> list[str]:
    """Ask every target, and publish its version again where it has another one; returns those targets' names.

    A target that does not answer is left alone: when it is back, it is asked again.

    Raises:
        Interrupted: a stop was asked for.
        StoreError: the outbox cannot be read or written.
    """
    drifted = []
    with runtime.delivering:
        for number, target in enumerate(targets := runtime.settings.publish.targets):
            runtime.progress("asking targets", number, len(targets))
            if _has_drifted(runtime, target):
                drifted.append(target.name)
        if drifted:
            deliver(runtime)
    return drifted


def _has_drifted(runtime: Runtime, target: Target) -> bool:
    """Ask one target; one that has drifted gets a publication."""
    with runtime.database.read() as session:
        last = outbox.newest_of(session, target.name)
        # What is on its way is confirmed when it arrives, and what was not confirmed waits for an operator.
        if last is None or last.state is not PublicationState.DELIVERED:
            return False
        version = get_version(session, last.version_id)
        former = outbox.held_by(session, target.name, other_than=version.id)
        asked = questions(session, version.id, former, runtime.settings.publish.confirm)
        publisher = publisher_of(runtime, session, target)
    log = runtime.log.bind(target=target.name, version=version.id)
    why = "it says that it has another version"
    try:
        holds = publisher.holds(release_of(runtime, version))
        if holds and target.asked_at is not None:
            check(target, asked, runtime.settings.publish.confirm)
    except Disagrees as disagreement:
        holds, why = False, str(disagreement)
    except PublishFailed as failure:
        runtime.metrics.publications.check(target.name, "unreachable")
        log.error("target cannot be asked", detail=str(failure))
        return False
    runtime.metrics.publications.check(target.name, "agrees" if holds else "drifted")
    if holds:
        return False
    log.error("target has drifted", detail=why)
    with runtime.database.transaction() as session:
        outbox.enqueue(session, version.id, [target.name])
    return True
