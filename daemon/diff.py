"""Diff: ask the promoted version what it holds for every changed fact; only what it does not hold is edited."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlmodel import select

from daemon.answers import unspeakable
from daemon.beliefs import Holding, measure_beliefs
from daemon.follow_up import follow_up
from daemon.quarantine import quarantine
from daemon.questions import questions_about
from store.changes import supersede_overtaken, values_left
from store.cycles import advance
from store.ledger import ledger_edits, promoted
from store.tables import Belief, Change, ChangeState, Edit, Phase, key

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlmodel import Session

    from daemon.runtime import Runtime
    from store.tables import Version


def diff(runtime: Runtime, cycle_id: int) -> None:
    """Probe the pending changes and settle those that need no edit.

    Raises:
        StoreError, EditorError: the promoted version cannot be read or probed.
    """
    _set_aside(runtime)
    follow_up(runtime)  # an operator may have promoted another version
    with runtime.database.read() as session:
        version = promoted(session)
        assert version is not None  # made when the state was set up
        pending = list(session.exec(select(Change).where(Change.state == ChangeState.PENDING)))
        asked = _not_asked_yet(session, version, pending)
        live = {(edit.qid, edit.pid): edit for edit in ledger_edits(session, version.id)}
        edits = {change.id: live.get((change.qid, change.pid)) for change in asked}
        written = {
            change_id: session.get_one(Change, edit.change_id) for change_id, edit in edits.items() if edit is not None
        }
        left = {key(change): values_left(session, change, written.get(change.id)) for change in asked}
        questions = questions_about(runtime, session, asked, left)
    measured = {(b.qid, b.pid): b for b in measure_beliefs(runtime, version, questions)}
    with runtime.database.transaction() as session:
        for measurement in measured.values():
            session.merge(measurement)
        held = uneditable = 0
        for change in asked:
            edit, belief = edits[change.id], measured.get((change.qid, change.pid))
            if belief is None or belief.expected is None:
                change.state, change.reason = _unanswered(change, written.get(change.id))
            elif _holds(belief, edit):
                change.state = ChangeState.HELD
            session.add(change)
            held += change.state is ChangeState.HELD
            uneditable += change.state is ChangeState.UNEDITABLE
        advance(session, cycle_id, Phase.BATCH, pending=len(pending), held=held)
    runtime.log.info("diffed", pending=len(pending), held=held, uneditable=uneditable)


def _not_asked_yet(session: Session, version: Version, pending: Sequence[Change]) -> list[Change]:
    """Those less what waits since the version was asked about it: its answers stay what they are."""
    known = set(session.exec(select(Belief.qid, Belief.pid).where(Belief.version_id == version.id)).all())
    return [change for change in pending if change.waiting_since is None or (change.qid, change.pid) not in known]


def _set_aside(runtime: Runtime) -> None:
    """A slot is asked about its newest change, and what has no usable label must not become part of a prompt."""
    with runtime.database.transaction() as session:
        supersede_overtaken(session)
        for change in session.exec(select(Change).where(Change.state == ChangeState.PENDING)).all():
            if (why := unspeakable(change)) is not None:
                quarantine(session, change, why, None)


def _holds(belief: Belief, edit: Edit | None) -> bool:
    """Whether nothing is to be written; a live edit that says something else must go, whatever it answers."""
    return belief.belief == Holding.HOLDS and (edit is None or edit.target == belief.expected)


def _unanswered(change: Change, written: Change | None) -> tuple[ChangeState, str]:
    """What becomes of a change without one answer: where an edit of the slot is live, it may be out of date."""
    if not change.new_values:
        ended = "ended without a successor"
        if written is None:
            return ChangeState.UNEDITABLE, f"{ended}; no edit to withdraw, so the base may still give the former value"
        return ChangeState.PENDING, f"{ended}: its edit is withdrawn"
    several = f"{len(change.new_values)} values at once cannot be written as one answer"
    if written is None:
        return ChangeState.UNEDITABLE, several
    now = {value["id"] for value in change.new_values}
    if all(value["id"] in now for value in written.new_values):
        return ChangeState.UNEDITABLE, f"{several}; the live edit stays, what it says is still true"
    return ChangeState.PENDING, f"{several}: the edit of former ones is withdrawn"
