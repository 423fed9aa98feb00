"""Candidates: versions whose ledger is the promoted one's with a batch's changes, or with some of them."""

from __future__ import annotations

from statistics import median_low
from typing import TYPE_CHECKING

from sqlmodel import select

from daemon.answers import answer_of
from store.changes import values_left
from store.ledger import ledger_edits, next_version_id, promoted, strengths
from store.tables import Change, Edit, LedgerEntry, Trial, Version, VersionState, key

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlmodel import Session

    from daemon.runtime import Runtime
    from store.tables import Values


def make_candidate(
    runtime: Runtime,
    session: Session,
    cycle_id: int,
    changes: Sequence[Change],
    digests: tuple[str, str],
    withheld: frozenset[int] = frozenset(),
    raised: Mapping[int, int] | None = None,
) -> Version:
    """A version whose ledger is the promoted one's, less the overtaken slots, plus the new edits.

    Args:
        runtime: for the wordings and how much an edit's strength is raised.
        session: of the transaction.
        cycle_id: the cycle that tries it.
        changes: of the batch.
        digests: of the base and of the settings.
        withheld: changes (by group) that this candidate leaves out.
        raised: how many times the strength of a change's edit (by group) is raised.
    """
    raised = raised or {}
    parent = promoted(session)
    assert parent is not None  # made when the state was set up
    taken = [change for change in changes if change.group not in withheld]
    overtaken = {(change.qid, change.pid) for change in taken}
    live = {(edit.qid, edit.pid): edit for edit in ledger_edits(session, parent.id)}
    kept = [edit for slot, edit in live.items() if slot not in overtaken]
    known = strengths(session, parent.id)
    new = [(change.group, edit) for change in taken if (edit := _edit_for(runtime, session, change, live)) is not None]
    candidate = Version(
        id=next_version_id(session), parent_id=parent.id, state=VersionState.CANDIDATE,
        base_digest=digests[0], settings_digest=digests[1],
    )  # fmt: skip
    session.add(candidate)
    session.add_all(edit for _, edit in new)
    session.flush()
    written = {key(edit): known[key(edit)] for edit in kept}
    # What edits of this base have needed so far is where a new one begins.
    usual = median_low(known.values()) if known else 1.0
    written |= {key(edit): usual * runtime.settings.trials.raise_by ** raised.get(group, 0) for group, edit in new}
    session.add_all(
        LedgerEntry(version_id=candidate.id, edit_id=edit_id, strength=strength)
        for edit_id, strength in written.items()
    )
    session.add(
        Trial(
            cycle_id=cycle_id, version_id=candidate.id, withheld=sorted(withheld),
            raised={str(group): times for group, times in sorted(raised.items())},
        )
    )  # fmt: skip
    return candidate


def edit_of(runtime: Runtime, change: Change, former: Values) -> Edit | None:
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


def _edit_for(runtime: Runtime, session: Session, change: Change, live: Mapping[tuple[str, str], Edit]) -> Edit | None:
    """A change that was tried before has its edit already."""
    known = session.exec(select(Edit).where(Edit.change_id == change.id)).one_or_none()
    return known or edit_of(runtime, change, _left(session, change, live.get((change.qid, change.pid))))


def _left(session: Session, change: Change, edit: Edit | None) -> Values:
    """What the promoted version was left with, where ``edit`` is its live edit of the change's slot."""
    return values_left(session, change, None if edit is None else session.get_one(Change, edit.change_id))
