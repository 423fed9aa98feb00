"""Batch: decide which changes the next candidate takes, and what its ledger is."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from sqlmodel import col, func, select

from daemon.answers import answer_of
from daemon.breaker import latches
from daemon.opinion import Opinions, second_opinions
from daemon.runtime import BASE_VERSION
from editor import EditRequest, LanguageModel, RequestInvalid, check_request
from store.cycles import advance, current_cycle, finish
from store.ledger import get_version, ledger_edits, next_version_id, promoted
from store.tables import (
    Change,
    ChangeState,
    Edit,
    LedgerEntry,
    Outcome,
    Phase,
    Quarantine,
    Version,
    VersionState,
    key,
)

if TYPE_CHECKING:
    from sqlmodel import Session

    from daemon.runtime import Runtime


def batch(runtime: Runtime, cycle_id: int) -> None:
    """Make a candidate of the oldest pending changes, or end the cycle where there are none.

    A change that cannot be put into an edit is quarantined with the reason.
    """
    opinions = second_opinions(runtime)
    with runtime.database.read() as session:
        waiting = session.exec(select(Change.id).where(Change.state == ChangeState.PENDING).limit(1)).first()
        base = get_version(session, BASE_VERSION)
    # The tokenizer is needed only where there is something to check.
    model = None if waiting is None else runtime.model(base)
    with runtime.database.transaction() as session:
        changes = [] if model is None else _acceptable(runtime, session, model, opinions)
        if model is None or not changes:
            finish(session, cycle_id, *_nothing_to_do(session))
            return
        candidate = _candidate(runtime, session, changes, base, runtime.settings_digest(model))
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


def request_of(edit: Edit, terminator: str) -> EditRequest:
    """What the editor is asked to write for an edit."""
    return EditRequest(edit.prompt, edit.subject, edit.target + terminator, tuple(edit.variants))


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
            for edit in (_edit_of(runtime, change) for change in changes):
                if edit is not None:
                    check_request(model, request_of(edit, runtime.settings.edit.terminator))
        except RequestInvalid as error:
            for change in changes:
                quarantine(session, change, str(error), None)
            continue
        accepted += changes
    return accepted


def quarantine(session: Session, change: Change, reason: str, version_id: int | None) -> None:
    """Keep a change out, with the reason."""
    change.state = ChangeState.QUARANTINED
    session.add(change)
    session.add(Quarantine(change_id=key(change), qid=change.qid, pid=change.pid, reason=reason, version_id=version_id))


def _edit_of(runtime: Runtime, change: Change) -> Edit | None:
    """The edit that writes a change; None where it is a withdrawal."""
    relation, longest_list = runtime.relation(change.pid), runtime.settings.edit.longest_list
    target = answer_of(relation, change.new_values, longest_list)
    if target is None:
        return None
    return Edit(
        change_id=key(change), qid=change.qid, pid=change.pid, prompt=relation.prompt,
        variants=list(relation.variants), subject=change.subject_label,
        target=target, former=answer_of(relation, change.old_values, longest_list),
    )  # fmt: skip


def _candidate(
    runtime: Runtime, session: Session, changes: list[Change], base: Version, settings_digest: str
) -> Version:
    """A version whose ledger is the promoted one's, less the overtaken slots, plus the new edits."""
    parent = promoted(session)
    assert parent is not None  # made when the state was set up
    overtaken = {(change.qid, change.pid) for change in changes}
    kept = [edit for edit in ledger_edits(session, parent.id) if (edit.qid, edit.pid) not in overtaken]
    new = []
    for change in changes:
        change.state = ChangeState.BATCHED
        session.add(change)
        # A change that was rejected and released has its edit already.
        known = session.exec(select(Edit).where(Edit.change_id == change.id)).one_or_none()
        edit = known or _edit_of(runtime, change)
        if edit is not None:
            new.append(edit)
    candidate = Version(
        id=next_version_id(session), parent_id=parent.id, state=VersionState.CANDIDATE,
        base_digest=base.base_digest, settings_digest=settings_digest,
    )  # fmt: skip
    session.add(candidate)
    session.add_all(new)
    session.flush()
    session.add_all(LedgerEntry(version_id=candidate.id, edit_id=key(edit)) for edit in [*kept, *new])
    return candidate
