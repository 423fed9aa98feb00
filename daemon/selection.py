"""Selection: which of the waiting changes the next batch takes, and what the others wait for. A pure function.

Waiting makes up for priority, so nothing waits for ever behind what is more important: a fact is overtaken only by
those that began to wait at most so much later as their priority is higher.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from datetime import datetime, timedelta


class Reason(StrEnum):
    """What a change waits for."""

    BATCH = "batch"  # others, until there are enough of them
    MAXIMUM = "maximum"  # the next batch: this one is full
    CAPACITY = "capacity"  # room in the ledger
    OPINION = "opinion"  # a second opinion, see `daemon.opinion`


@dataclass(frozen=True, slots=True)
class Waiting:
    """The changes of one fact, in both its directions; they are taken together.

    Attributes:
        group: names them.
        changes: how many they are, at least one.
        growth: how many edits the ledger has more when they are taken: 0 or less where they replace or withdraw.
        priority: in points, each worth ``Policy.aging``.
        since: when they began to wait.

    """

    group: int
    changes: int
    growth: int
    priority: float
    since: datetime


@dataclass(frozen=True, slots=True)
class Policy:
    """How batches are made.

    Attributes:
        minimum: changes that are worth a batch.
        maximum: changes that a batch may have, unless one fact alone has more.
        wait: how long a fact waits at most for a batch of the minimum.
        aging: how long to wait is worth a point of priority.
        capacity: how many edits may be live; None: any number.

    """

    minimum: int
    maximum: int
    wait: timedelta
    aging: timedelta
    capacity: int | None


@dataclass(frozen=True, slots=True)
class Selection:
    """What became of the waiting facts.

    Attributes:
        taken: groups, the most urgent first.
        waiting: how many changes wait for what.
        until: when those that wait for a batch are taken even if it is a small one.

    """

    taken: tuple[int, ...] = ()
    waiting: Mapping[Reason, int] = field(default_factory=dict)
    until: datetime | None = None


def select(waiting: Collection[Waiting], live: int, policy: Policy, now: datetime) -> Selection:
    """Choose the next batch.

    What does not fit is not passed by what comes later and is smaller, neither into the batch nor into the ledger:
    otherwise a fact with many ends might never find room. What does not grow the ledger needs none.

    Args:
        waiting: the facts, in any order.
        live: edits of the promoted version.
        policy: how batches are made.
        now: the present.

    """
    taken: list[Waiting] = []
    left: dict[Reason, int] = {}
    capacity = math.inf if policy.capacity is None else policy.capacity
    size, ledger, batch_full, ledger_full = 0, live, False, False
    for fact in sorted(waiting, key=lambda fact: (_urgency(fact, policy), fact.group)):
        if fact.growth > 0 and (ledger_full or ledger + fact.growth > capacity):
            # What can never fit is in nobody's way.
            ledger_full = ledger_full or fact.growth <= capacity
            left[Reason.CAPACITY] = left.get(Reason.CAPACITY, 0) + fact.changes
            continue
        batch_full = batch_full or (bool(taken) and size + fact.changes > policy.maximum)
        if batch_full:
            left[Reason.MAXIMUM] = left.get(Reason.MAXIMUM, 0) + fact.changes
            continue
        taken.append(fact)
        size, ledger = size + fact.changes, ledger + fact.growth
    if taken and size < policy.minimum and not batch_full:
        until = min(fact.since for fact in taken) + policy.wait
        if now < until:
            return Selection((), left | {Reason.BATCH: size}, until)
    return Selection(tuple(fact.group for fact in taken), left)


def _urgency(fact: Waiting, policy: Policy) -> float:
    """When it began to wait, seconds, set back by its priority: the earliest is the most urgent, today and tomorrow."""
    return fact.since.timestamp() - fact.priority * policy.aging.total_seconds()


def told(selection: Selection, policy: Policy, live: int) -> list[str]:
    """What waits and why, a line for each reason."""
    lines = []
    for reason, count in sorted(selection.waiting.items()):
        who = f"{count} change{' waits' if count == 1 else 's wait'}"
        if reason is Reason.BATCH:
            lines.append(f"{who} for a batch of {policy.minimum} or until {selection.until:%Y-%m-%d %H:%M} UTC")
        elif reason is Reason.CAPACITY:
            lines.append(
                f"{who} for room in the ledger, which has {live} edits of at most {policy.capacity}: "
                "edit more layers, use a larger model or raise batch.capacity"
            )
        elif reason is Reason.OPINION:
            lines.append(f"{who} for the second opinion")
        else:
            lines.append(f"{who} for the next batch")
    return lines
