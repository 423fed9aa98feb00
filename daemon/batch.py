"""Batch: decide which changes the next candidate takes, and what its ledger is."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from sqlmodel import col, func, select

from daemon.breaker import latches
from daemon.candidate import edit_of, make_candidate
from daemon.opinion import Opinions, second_opinions
from daemon.quarantine import quarantine, release_due
from daemon.runtime import BASE_VERSION
from editor import EditRequest, LanguageModel, RequestInvalid, check_request
from store.cycles import advance, current_cycle, finish
from store.ledger import get_version
from store.tables import Change, ChangeState, Edit, Outcome, Phase

if TYPE_CHECKING:
    from sqlmodel import Session

    from daemon.runtime import Runtime


def batch(runtime: Runtime, cycle_id: int) -> None:
    """Make a candidate of the oldest pending changes, or end the cycle where there are none.

    A change that cannot be put into an edit is quarantined with the reason.
    """
    opinions = second_opinions(runtime)
    with runtime.database.transaction() as session:
        released = release_due(session)
        waiting = session.exec(select(Change.id).where(Change.state == ChangeState.PENDING).limit(1)).first()
        base = get_version(session, BASE_VERSION)
    if released:
        runtime.log.info("released", changes=released)
    # The tokenizer is needed only where there is something to check.
    model = None if waiting is None else runtime.model(base)
    with runtime.database.transaction() as session:
        changes = [] if model is None else _acceptable(runtime, session, model, opinions)
        if model is None or not changes:
            finish(session, cycle_id, *_nothing_to_do(session))
            return
        for change in changes:
            change.state = ChangeState.BATCHED
            session.add(change)
        digests = (base.base_digest, runtime.settings_digest(model))
        candidate = make_candidate(runtime, session, cycle_id, changes, digests)
        current_cycle(session, cycle_id).candidate_id = candidate.id
        advance(session, cycle_id, Phase.EDIT, batched=len(changes))
    runtime.log.info("batched", candidate=candidate.id, changes=len(changes))


def _nothing_to_do(session: Session) -> tuple[Outcome, str]:
    """How a cycle without a candidate ends: what the breaker holds waits for an operator."""
    if tripped := latches(session):
        return Outcome.HELD, "; ".join(str(latch) for latch in tripped)
    counts = dict(session.exec(select(Change.state, func.count()).group_by(Change.state)).all())
    if pending := counts.get(ChangeState.PENDING):
        return Outcome.NOTHING, f"{pending} changes wait for the second opinion"
    if settling := counts.get(ChangeState.SETTLING):
        return Outcome.NOTHING, f"{settling} changes have not settled yet"
    return Outcome.NOTHING, "every fact is as recorded"


def request_of(edit: Edit, terminator: str, strength: float = 1.0) -> EditRequest:
    """What the editor is asked to write for an edit."""
    return EditRequest(edit.prompt, edit.subject, edit.target + terminator, tuple(edit.variants), strength)


def _acceptable(runtime: Runtime, session: Session, model: LanguageModel, opinions: Opinions) -> list[Change]:
    """Pending changes that can be written, oldest first, up to the maximum; the others are quarantined.

    The two directions of a fact are taken or kept out together. What the second opinion is against settles anew, and
    what it could not be asked about waits.
    """
    pending = session.exec(select(Change).where(Change.state == ChangeState.PENDING).order_by(col(Change.id))).all()
    accepted: list[Change] = []
    for number, group in groupby(pending, key=lambda change: change.group):
        changes = list(group)
        if number in opinions.unheard:
            continue
        if number in opinions.against:
            for change in changes:
                change.state, change.polls, change.reason = ChangeState.SETTLING, 0, opinions.against[number]
            continue
        if accepted and len(accepted) + len(changes) > runtime.settings.batch.maximum:
            break
        try:
            for edit in (edit_of(runtime, change) for change in changes):
                if edit is not None:
                    check_request(model, request_of(edit, runtime.settings.edit.terminator))
        except RequestInvalid as error:
            for change in changes:
                quarantine(session, change, str(error), None)
            continue
        accepted += changes
    return accepted
