"""Settle: a change may be edited once it has stood for long enough, and for enough pulls.

Most vandalism is taken back within minutes to hours. A slot that is ambiguous at the moment does not stand, and neither
does a change that the rate breaker holds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlmodel import col, select

from daemon.breaker import ALL
from sources import Outcome
from store.tables import Change, ChangeState, Fact

if TYPE_CHECKING:
    from collections.abc import Collection
    from datetime import datetime, timedelta

    from sqlmodel import Session


def settle(
    session: Session, rule: tuple[timedelta, int], replicated: datetime, held: Collection[str]
) -> tuple[int, int]:
    """Count a pull for every change that stands, and make those that have settled pending.

    Args:
        session: of the transaction that ends the pull.
        rule: how long, and at the end of how many pulls, a change must stand.
        replicated: up to when the source was read.
        held: properties whose breaker is tripped.

    Returns:
        How many have settled, and how many have not.
    """
    long_enough, polls = rule
    settled = 0
    waiting = session.exec(select(Change).where(Change.state == ChangeState.SETTLING).order_by(col(Change.id))).all()
    for change in waiting:
        # Both ends of a fact go together, so what counts is the slot that was read.
        origin = change if change.origin_id is None else session.get_one(Change, change.origin_id)
        fact = session.get(Fact, (origin.qid, origin.pid))
        if fact is not None and fact.outcome == Outcome.AMBIGUOUS:
            continue
        change.polls += 1
        stood = change.polls >= polls and replicated - change.modified_at >= long_enough
        if stood and not {origin.pid, ALL} & set(held):
            change.state, change.reason = ChangeState.PENDING, ""
            settled += 1
    return settled, len(waiting) - settled
