"""Diff: ask the promoted version what it holds for every changed fact; only what it does not hold is edited."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlmodel import select

from daemon.beliefs import Holding, measure_beliefs, question_of
from store.cycles import advance
from store.ledger import ledger_edits, promoted
from store.tables import Change, ChangeState, Phase

if TYPE_CHECKING:
    from daemon.runtime import Runtime


def diff(runtime: Runtime, cycle_id: int) -> None:
    """Probe the pending changes and settle those that need no edit.

    Raises:
        StoreError, EditorError: the promoted version cannot be read or probed.
    """
    with runtime.database.read() as session:
        version = promoted(session)
        assert version is not None  # made when the state was set up
        pending = list(session.exec(select(Change).where(Change.state == ChangeState.PENDING)))
        live = {(edit.qid, edit.pid) for edit in ledger_edits(session, version.id)}
    # Without one definite value there is nothing to write; a live edit of an ended fact is still withdrawn.
    uneditable = {
        change.id for change in pending
        if len(change.new_values) > 1 or (not change.new_values and (change.qid, change.pid) not in live)
    }  # fmt: skip
    definite = [change for change in pending if len(change.new_values) == 1]
    questions = [question_of(runtime.relation(change.pid), change) for change in definite]
    beliefs = measure_beliefs(runtime, version, questions)
    held = {change.id for change, belief in zip(definite, beliefs, strict=True) if belief.belief == Holding.HOLDS}
    with runtime.database.transaction() as session:
        for belief in beliefs:
            session.merge(belief)
        for change in pending:
            if change.id in uneditable:
                change.state = ChangeState.UNEDITABLE
            elif change.id in held:
                change.state = ChangeState.HELD
            session.add(change)
        advance(session, cycle_id, Phase.BATCH, pending=len(pending), held=len(held))
    runtime.log.info("diffed", pending=len(pending), held=len(held), uneditable=len(uneditable))
