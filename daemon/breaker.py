"""Rate breaker: where too much changes at once, nothing of it is edited until an operator has looked.

A tripped breaker is latched in the database. It is reset by ``factsyncd resume``, or by itself once so much of the wave
has been taken back that it would not have tripped.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from sqlmodel import col, func, select

from store.tables import Change, ChangeState, Control, Fact, utc_now

if TYPE_CHECKING:
    from sqlmodel import Session

    from daemon.config import Settings

ALL = "all"
"""Stands for a property's P-id where all of them are meant."""
LATCH = "breaker:"
"""Control, followed by a property: a latched breaker."""
ACKNOWLEDGED = "breaker acknowledged"
"""Control: the last change that an operator has looked at; only later ones count."""


@dataclass(frozen=True)
class Latch:
    """A tripped breaker.

    Attributes:
        property: its P-id, or ``all``.
        changes: how many changes of it were counted.
        facts: how many facts of it are tracked.
        since: changes recorded since then are counted, ISO.
        tripped_at: ISO.

    """

    property: str
    changes: int
    facts: int
    since: str
    tripped_at: str

    def __str__(self) -> str:
        what = "facts" if self.property == ALL else f"{self.property} facts"
        return (
            f"the rate breaker holds: {self.changes} of {self.facts} {what} changed since {self.since[:16]}; "
            "look at `factsyncd facts --state settling`, then `factsyncd resume`"
        )


def latches(session: Session) -> list[Latch]:
    """The breakers that are tripped."""
    rows = select(Control).where(col(Control.key).startswith(LATCH)).order_by(col(Control.key))
    return [Latch(**json.loads(row.value)) for row in session.exec(rows)]


def watch(session: Session, settings: Settings) -> tuple[list[Latch], list[str]]:
    """Trip breakers of what changes too much, and reset those whose wave was taken back.

    Args:
        session: of the transaction that ends the pull.
        settings: the configuration.

    Returns:
        Those that are tripped now, and the properties of those that were reset.
    """
    property_share, overall_share = settings.breaker_shares
    facts = dict(session.exec(select(Fact.pid, func.count()).group_by(Fact.pid)).all())
    limits = dict.fromkeys(facts, property_share) | {ALL: overall_share}
    facts[ALL] = sum(facts.values())
    latched = {latch.property: latch for latch in latches(session)}
    now = utc_now()
    fresh = _counts(session, now - timedelta(seconds=settings.breaker.window_seconds))
    tripped, reset = [], []
    for name, share in limits.items():
        before = latched.get(name)
        # A wave does not end because its first changes leave the window.
        counts = fresh if before is None else _counts(session, datetime.fromisoformat(before.since))
        count = counts.get(name, 0)
        too_much = share is not None and count >= settings.breaker.minimum and count > share * facts[name]
        since = now - timedelta(seconds=settings.breaker.window_seconds)
        if too_much:
            latch = Latch(
                name, count, facts[name], before.since if before else since.isoformat(),
                before.tripped_at if before else now.isoformat(),
            )  # fmt: skip
            session.merge(Control(key=LATCH + name, value=json.dumps(asdict(latch))))
            tripped.append(latch)
        elif before is not None:
            session.delete(session.get_one(Control, LATCH + name))
            reset.append(name)
    return tripped, reset


def acknowledge(session: Session) -> None:
    """Reset all breakers; what was recorded so far is counted no more."""
    for row in session.exec(select(Control).where(col(Control.key).startswith(LATCH))).all():
        session.delete(row)
    last = session.exec(select(func.max(Change.id))).one() or 0
    session.merge(Control(key=ACKNOWLEDGED, value=str(last)))


def _counts(session: Session, since: datetime) -> dict[str, int]:
    """Changes per property, and all of them, that were recorded since then, still stand and were not looked at."""
    known = session.get(Control, ACKNOWLEDGED)
    counted = (
        select(Change.pid, func.count())
        .where(col(Change.origin_id).is_(None), col(Change.id) > (0 if known is None else int(known.value)))
        .where(col(Change.recorded_at) >= since)
        .where(col(Change.state).not_in((ChangeState.REVERTED, ChangeState.SUPERSEDED)))
        .group_by(col(Change.pid))
    )
    counts = dict(session.exec(counted).all())
    return counts | {ALL: sum(counts.values())}
