"""Batch: decide which changes the next candidate takes, and what its ledger is."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING

from sqlmodel import func, select

from daemon.answers import answer_of
from daemon.backlog import as_waiting, live_slots, pending_groups, policy_of
from daemon.breaker import latches
from daemon.opinion import Opinions, Slot, second_opinions
from daemon.runtime import BASE_VERSION
from daemon.selection import Policy, Reason, Selection, told
from daemon.selection import select as select_facts
from editor import EditRequest, LanguageModel, RequestInvalid, check_request
from store.changes import values_left
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
    utc_now,
)

if TYPE_CHECKING:
    from sqlmodel import Session

    from daemon.runtime import Runtime
    from store.tables import Values


def batch(runtime: Runtime, cycle_id: int) -> None:
    """Make a candidate of the most urgent pending changes, or end the cycle where there are none or too few.

    A change that cannot be put into an edit is quarantined with the reason.
    """
    opinions = second_opinions(runtime)
    with runtime.database.read() as session:
        waiting = session.exec(select(Change.id).where(Change.state == ChangeState.PENDING).limit(1)).first()
        base = get_version(session, BASE_VERSION)
    # The tokenizer is needed only where there is something to check.
    model = None if waiting is None else runtime.model(base)
    digest = None if model is None else runtime.settings_digest(model)
    with runtime.database.transaction() as session:
        present, live = live_slots(session)
        policy = policy_of(runtime, present, digest)
        chosen = Chosen() if model is None else _choose(runtime, session, model, opinions, live, policy)
        reasons = told(chosen.selection, policy, len(live))
        waits = sum(chosen.selection.waiting.values())
        candidate = None
        if digest is None or not chosen.changes:
            outcome, detail = _nothing_to_do(session, chosen.selection, reasons)
            finish(session, cycle_id, outcome, detail, waiting=waits)
        else:
            candidate = _candidate(runtime, session, chosen.changes, base, digest)
            current_cycle(session, cycle_id).candidate_id = candidate.id
            advance(session, cycle_id, Phase.EDIT, batched=len(chosen.changes), waiting=waits)
    runtime.metrics.backlog(chosen.selection.waiting, policy.capacity)
    if Reason.CAPACITY in chosen.selection.waiting:
        runtime.log.warning("ledger full", live=len(live), capacity=policy.capacity, detail="; ".join(reasons))
    if candidate is not None:
        runtime.log.info("batched", candidate=candidate.id, changes=len(chosen.changes), waiting=waits)


def _nothing_to_do(session: Session, selection: Selection, reasons: list[str]) -> tuple[Outcome, str]:
    """How a cycle without a candidate ends: what the breaker or a full ledger holds waits for an operator."""
    if tripped := latches(session):
        return Outcome.HELD, "; ".join([*map(str, tripped), *reasons])
    if reasons:
        return Outcome.HELD if Reason.CAPACITY in selection.waiting else Outcome.NOTHING, "; ".join(reasons)
    settling = session.exec(select(func.count()).where(Change.state == ChangeState.SETTLING)).one()
    if settling:
        return Outcome.NOTHING, f"{settling} changes have not settled yet"
    return Outcome.NOTHING, "every fact is as recorded"


def request_of(edit: Edit, terminator: str) -> EditRequest:
    """What the editor is asked to write for an edit."""
    return EditRequest(edit.prompt, edit.subject, edit.target + terminator, tuple(edit.variants))


@dataclass(frozen=True)
class Chosen:
    """The changes that the batch takes, oldest first, and what became of all."""

    changes: list[Change] = field(default_factory=list)
    selection: Selection = field(default_factory=Selection)


def _choose(
    runtime: Runtime, session: Session, model: LanguageModel, opinions: Opinions, live: frozenset[Slot], policy: Policy
) -> Chosen:
    """Take the pending changes whose turn it is and that can be written; the others are quarantined, or wait.

    The two directions of a fact are taken or kept out together. What the second opinion is against settles anew, and
    what it could not be asked about waits.
    """
    now = utc_now()
    groups = pending_groups(session)
    for number in opinions.against.keys() & groups.keys():
        for change in groups.pop(number):
            change.state, change.polls, change.waiting_since = ChangeState.SETTLING, 0, None
            change.reason = opinions.against[number]
    unheard = [change for number in opinions.unheard for change in groups.pop(number, [])]
    facts = as_waiting(runtime, session, groups, live, now)
    writable: set[int] = set()
    while True:
        selection = select_facts(facts.values(), len(live), policy, now)
        unwritable = [
            number
            for number in selection.taken
            if number not in writable and not _is_writable(runtime, session, model, groups[number])
        ]
        writable.update(selection.taken)
        if not unwritable:
            break
        for number in unwritable:
            del facts[number], groups[number]
    taken = sorted((change for number in selection.taken for change in groups.pop(number)), key=key)
    for change in [*unheard, *chain.from_iterable(groups.values())]:
        change.waiting_since = change.waiting_since or now
    if unheard:
        selection = replace(selection, waiting={**selection.waiting, Reason.OPINION: len(unheard)})
    return Chosen(taken, selection)


def _is_writable(runtime: Runtime, session: Session, model: LanguageModel, changes: list[Change]) -> bool:
    """Whether edits can be made of a fact's changes; if not, they are quarantined."""
    try:
        for change in changes:
            edit = _edit_of(runtime, change, change.old_values)
            if edit is not None:
                check_request(model, request_of(edit, runtime.settings.edit.terminator))
    except RequestInvalid as error:
        for change in changes:
            quarantine(session, change, str(error), None)
        return False
    return True


def quarantine(session: Session, change: Change, reason: str, version_id: int | None) -> None:
    """Keep a change out, with the reason."""
    change.state = ChangeState.QUARANTINED
    session.add(change)
    session.add(Quarantine(change_id=key(change), qid=change.qid, pid=change.pid, reason=reason, version_id=version_id))


def _edit_of(runtime: Runtime, change: Change, former: Values) -> Edit | None:
    """The edit that writes a change and displaces ``former``; None where it is a withdrawal."""
    relation, longest_list = runtime.relation(change.pid), runtime.settings.edit.longest_list
    target = answer_of(relation, change.new_values, longest_list)
    if target is None:
        return None
    return Edit(
        change_id=key(change), qid=change.qid, pid=change.pid, prompt=relation.prompt,
        variants=list(relation.variants), subject=change.subject_label,
        target=target, former=answer_of(relation, former, longest_list),
    )  # fmt: skip


def _candidate(
    runtime: Runtime, session: Session, changes: list[Change], base: Version, settings_digest: str
) -> Version:
    """A version whose ledger is the promoted one's, less the overtaken slots, plus the new edits."""
    parent = promoted(session)
    assert parent is not None  # made when the state was set up
    overtaken = {(change.qid, change.pid) for change in changes}
    live = {(edit.qid, edit.pid): edit for edit in ledger_edits(session, parent.id)}
    kept = [edit for slot, edit in live.items() if slot not in overtaken]
    new = []
    for change in changes:
        change.state, change.waiting_since = ChangeState.BATCHED, None
        session.add(change)
        # A change that was rejected and released has its edit already.
        known = session.exec(select(Edit).where(Edit.change_id == change.id)).one_or_none()
        edit = known or _edit_of(runtime, change, _left(session, change, live.get((change.qid, change.pid))))
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


def _left(session: Session, change: Change, edit: Edit | None) -> Values:
    """What the promoted version was left with, where ``edit`` is its live edit of the change's slot."""
    return values_left(session, change, None if edit is None else session.get_one(Change, edit.change_id))
