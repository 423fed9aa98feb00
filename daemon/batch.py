"""Batch: decide which changes the next candidate takes, and what its ledger is."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING, TypeAlias

from sqlmodel import func, select

from daemon.backlog import as_waiting, live_slots, pending_groups, policy_of
from daemon.breaker import latches
from daemon.candidate import edit_of, make_candidate
from daemon.opinion import Opinions, Slot, second_opinions
from daemon.quarantine import quarantine, release_due
from daemon.runtime import BASE_VERSION
from daemon.selection import Policy, Reason, Selection, told
from daemon.selection import select as select_facts
from editor import EditRequest, LanguageModel, RequestInvalid, check_request
from store.cycles import advance, current_cycle, finish
from store.ledger import get_version
from store.tables import Change, ChangeState, Edit, Outcome, Phase, key, utc_now

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlmodel import Session

    from daemon.runtime import Runtime


def batch(runtime: Runtime, cycle_id: int) -> None:
    """Make a candidate of the most urgent pending changes, or end the cycle where there are none or too few.

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
    digest = None if model is None else runtime.settings_digest(model)
    text = () if model is None else runtime.preparation(model).held_out
    with runtime.database.transaction() as session:
        present, live = live_slots(session)
        policy = policy_of(runtime, present, digest)
        chosen = Chosen() if model is None else _choose(runtime, session, (model, text), opinions, live, policy)
        reasons = told(chosen.selection, policy, len(live))
        waits = sum(chosen.selection.waiting.values())
        candidate = None
        if digest is None or not chosen.changes:
            outcome, detail = _nothing_to_do(session, chosen.selection, reasons)
            finish(session, cycle_id, outcome, detail, waiting=waits)
        else:
            for change in chosen.changes:
                change.state, change.waiting_since = ChangeState.BATCHED, None
                session.add(change)
            candidate = make_candidate(runtime, session, cycle_id, chosen.changes, (base.base_digest, digest))
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


def request_of(edit: Edit, terminator: str, strength: float = 1.0) -> EditRequest:
    """What the editor is asked to write for an edit."""
    return EditRequest(edit.prompt, edit.subject, edit.target + terminator, tuple(edit.variants), strength)


Reader: TypeAlias = "tuple[LanguageModel, Sequence[Sequence[int]]]"
"""The base, and token ids of ordinary text."""


@dataclass(frozen=True)
class Chosen:
    """The changes that the batch takes, oldest first, and what became of all."""

    changes: list[Change] = field(default_factory=list)
    selection: Selection = field(default_factory=Selection)


def _choose(
    runtime: Runtime, session: Session, reader: Reader, opinions: Opinions, live: frozenset[Slot], policy: Policy
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
            if number not in writable and not _is_writable(runtime, session, reader, groups[number])
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


def _is_writable(runtime: Runtime, session: Session, reader: Reader, changes: list[Change]) -> bool:
    """Whether edits can be made of a fact's changes; if not, they are quarantined."""
    model, text = reader
    try:
        for change in changes:
            edit = edit_of(runtime, change, change.old_values)
            if edit is not None:
                check_request(model, request_of(edit, runtime.settings.edit.terminator), text)
    except RequestInvalid as error:
        for change in changes:
            quarantine(session, change, str(error), None)
        return False
    return True
