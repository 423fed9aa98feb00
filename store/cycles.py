"""How a cycle moves: called inside the transaction that commits a phase's effects."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlmodel import col, select

from store.tables import Cycle, Outcome, Phase, utc_now

if TYPE_CHECKING:
    from sqlmodel import Session


def current_cycle(session: Session, cycle_id: int) -> Cycle:
    """The cycle's row; it exists for as long as its number is known."""
    return session.exec(select(Cycle).where(Cycle.id == cycle_id)).one()


def advance(session: Session, cycle_id: int, following: Phase, **counts: int) -> None:
    """Name the phase that runs next, and record what the finished one counted."""
    cycle = current_cycle(session, cycle_id)
    cycle.phase = following
    cycle.counts = cycle.counts | counts


def finish(session: Session, cycle_id: int, outcome: Outcome, detail: str, **counts: int) -> None:
    """End the cycle."""
    advance(session, cycle_id, Phase.DONE, **counts)
    cycle = current_cycle(session, cycle_id)
    cycle.outcome = outcome
    cycle.detail = detail
    cycle.finished_at = utc_now()


def cycle_of(session: Session, candidate_id: int) -> Cycle | None:
    """The last cycle that worked on a candidate."""
    cycles = select(Cycle).where(Cycle.candidate_id == candidate_id).order_by(col(Cycle.id).desc())
    return session.exec(cycles.limit(1)).first()
