"""Backlog: pending changes as the selection sees them, and how full the ledger may become."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import TYPE_CHECKING

from sqlmodel import col, func, select

from daemon.answers import answer_of
from daemon.runtime import BASE_VERSION
from daemon.selection import Policy, Waiting
from store.ledger import ledger_edits, promoted
from store.tables import Change, ChangeState, Fact

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from sqlmodel import Session

    from daemon.config import BatchSection
    from daemon.runtime import Runtime
    from store.tables import Version

Groups = dict[int, list[Change]]
"""Pending changes by their group, each group and all of them oldest first."""


def pending_groups(session: Session) -> Groups:
    """All pending changes."""
    groups: Groups = {}
    pending = select(Change).where(Change.state == ChangeState.PENDING)
    for change in session.exec(pending.order_by(col(Change.id))):
        groups.setdefault(change.group, []).append(change)
    return groups


def as_waiting(
    runtime: Runtime, session: Session, groups: Groups, live: frozenset[tuple[str, str]], now: datetime
) -> dict[int, Waiting]:
    """The groups as the selection sees them; ``live`` are the slots with an edit in the promoted version."""
    settings = runtime.settings.batch
    longest_list = runtime.settings.edit.longest_list

    def growth(change: Change) -> int:
        written = answer_of(runtime.relation(change.pid), change.new_values, longest_list) is not None
        return written - ((change.qid, change.pid) in live)

    return {
        number: Waiting(
            number,
            len(changes),
            sum(map(growth, changes)),
            _priority(session, session.get_one(Change, number), settings),
            min((change.waiting_since for change in changes if change.waiting_since is not None), default=now),
        )
        for number, changes in groups.items()
    }


def _priority(session: Session, origin: Change, settings: BatchSection) -> float:
    """Points for the property that was read from the source, and for each doubling of the subject's prominence."""
    points = settings.priority.get(origin.pid, 0.0)
    if settings.prominence:
        points += settings.prominence * math.log2(1 + _prominence(session, origin))
    return points


def _prominence(session: Session, origin: Change) -> int:
    """In how many wikis the subject has a page; where the source does not say, how many facts of it are tracked."""
    fact = session.get(Fact, (origin.qid, origin.pid))
    if fact is not None and fact.sitelinks is not None:
        return fact.sitelinks
    return session.exec(select(func.count()).select_from(Fact).where(Fact.qid == origin.qid)).one()


def policy_of(runtime: Runtime, present: Version, settings_digest: str | None) -> Policy:
    """How batches are made upon the promoted version.

    Args:
        runtime: with the settings.
        present: the promoted version.
        settings_digest: of what shapes the next candidate's weights; None where there will be none. What was solved
            with other settings (layers, strength) does not tell how full the layers will be.

    Raises:
        ArtifactCorrupt: its manifest cannot be read.
    """
    settings = runtime.settings.batch
    capacity = settings.capacity
    if capacity is None and present.id != BASE_VERSION and settings_digest in (None, present.settings_digest):
        capacity = expected_capacity(runtime.artifacts.manifest(present.id).extra, settings.capacity_load)
    return Policy(
        settings.minimum,
        settings.maximum,
        timedelta(seconds=settings.wait_seconds),
        timedelta(seconds=settings.aging_seconds),
        capacity,
    )


def expected_capacity(extra: Mapping[str, object], most: float) -> int | None:
    """How many edits bring a version's ``load`` to the share ``most``; None where there is nothing to tell it by.

    Proportional to what the version's own edits take up. Each further edit takes up less than the ones before it (keys
    overlap), so this is an underestimate that becomes exact where the ledger comes to be full.
    """
    load, ledger = extra.get("load"), extra.get("ledger")
    if not isinstance(load, float) or not isinstance(ledger, list) or not ledger or load <= 0:
        return None
    return math.floor(len(ledger) * most / load)


def live_slots(session: Session) -> tuple[Version, frozenset[tuple[str, str]]]:
    """The promoted version, and the slots of which an edit is live."""
    present = promoted(session)
    assert present is not None  # made when the state was set up
    return present, frozenset((edit.qid, edit.pid) for edit in ledger_edits(session, present.id))
