"""Record: what an observation of a slot changes in what we know, at both ends of the fact.

A slot's last change says what we last came to believe of it, whether that was certain or kept out for its label; an
observation that says something else is a new change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlmodel import col, select

from daemon.expansion import expand, expanded_values
from daemon.quarantine import quarantine
from sources import Outcome
from store.changes import OPEN, expanded_from, in_play, newest_change, record_change
from store.tables import Change, ChangeState, Fact, key, utc_now, value_ids

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from sqlmodel import Session

    from sources import Observation, Page, Relation
    from store.tables import Values


@dataclass(frozen=True, slots=True)
class Reading:
    """What all observations of one pull have in common.

    Attributes:
        cycle_id: the cycle that pulls.
        replicated: up to when the source was complete when it was asked.
        baseline: slots first seen at a modification up to it are recorded and are no change.
        relations: those that are watched.
        first_load: whether a slot that is seen for the first time need not settle.

    """

    cycle_id: int
    replicated: datetime
    baseline: datetime
    relations: Mapping[str, Relation]
    first_load: bool = False


def record_page(session: Session, page: Page, reading: Reading) -> int:
    """Record a page's observations and what they change; returns how many were changes.

    Recording a page again changes nothing.
    """
    qids = {seen.qid for seen in page.observations}
    facts = {(fact.qid, fact.pid): fact for fact in session.exec(select(Fact).where(col(Fact.qid).in_(qids)))}
    return sum(_record(session, seen, reading, facts) for seen in page.observations)


def record(session: Session, seen: Observation, reading: Reading) -> bool:
    """Record one observation; returns whether the slot has changed."""
    fact = session.get(Fact, (seen.qid, seen.pid))
    return _record(session, seen, reading, {} if fact is None else {(seen.qid, seen.pid): fact})


def _record(session: Session, seen: Observation, reading: Reading, facts: dict[tuple[str, str], Fact]) -> bool:
    fact = facts.get((seen.qid, seen.pid))
    if fact is not None and seen.sitelinks is not None and seen.revision >= fact.revision:
        fact.sitelinks = seen.sitelinks
    if not _is_news(fact, seen, reading):
        return False
    last = newest_change(session, seen.qid, seen.pid)
    before: Values = expanded_values(session, seen.qid, seen.pid, reading.relations) if fact is None else fact.values
    after: Values = [{"kind": value.kind.value, "id": value.id, "label": value.label} for value in seen.values]
    baseline = last is None and _is_of_baseline(fact, seen, before, after, reading)
    first = reading.first_load and fact is None
    change = Change(
        qid=seen.qid, pid=seen.pid, subject_label=seen.subject_label, old_values=before, new_values=after,
        revision=seen.revision, statement=seen.statement, cycle_id=reading.cycle_id,
        modified_at=seen.modified if fact is None or seen.revision > fact.revision else reading.replicated,
        state=ChangeState.PENDING if first and not seen.fault else ChangeState.SETTLING,
    )  # fmt: skip
    former_label = seen.subject_label if fact is None else fact.subject_label
    fact = facts[seen.qid, seen.pid] = _remember(session, fact, seen, change, before)
    if baseline or (seen.outcome is Outcome.AMBIGUOUS and not seen.fault):
        return False
    stands = value_ids(before if last is None else last.new_values)
    if seen.fault:
        if stands != value_ids(after):
            _keep_out(session, change, seen.reason)
            return True
        return False
    change.subject_label = fact.subject_label
    differs = not value_ids(after) == stands == value_ids(before)
    reworded = last is not None and (last.new_values, last.subject_label) != (after, fact.subject_label)
    recorded = differs or (reworded and in_play(session, seen.qid, seen.pid))
    if recorded:
        _record_with_other_ends(session, change, before, reading.relations)
    elif (before, former_label) != (after, fact.subject_label):
        # Nothing of this slot is written, but what is told at the other ends may be.
        expand(session, change, before, reading.relations)
    return recorded


def _is_news(fact: Fact | None, seen: Observation, reading: Reading) -> bool:
    """Whether an observation can tell something; at one revision the source's time decides which reading is later."""
    if fact is None:
        return bool(seen.values)  # without one it never had a value: not a slot we track
    if seen.revision != fact.revision:
        return seen.revision > fact.revision
    if reading.replicated <= fact.modified_at:
        return False
    if seen.fault:
        return (fact.outcome, value_ids(fact.unlabelled), fact.gone) != (seen.outcome.value, _ids(seen), False)
    if seen.outcome is Outcome.AMBIGUOUS:
        return (fact.outcome, fact.unlabelled, fact.gone) != (seen.outcome.value, [], False)
    told = [(value["id"], value["label"]) for value in fact.values]
    says = [(value.id, value.label) for value in seen.values]
    label = seen.subject_label or fact.subject_label
    return (fact.outcome, told, fact.subject_label, fact.gone) != (seen.outcome.value, says, label, False)


def _ids(seen: Observation) -> list[str]:
    return [value.id for value in seen.values]


def _is_of_baseline(fact: Fact | None, seen: Observation, before: Values, after: Values, reading: Reading) -> bool:
    """Whether the slot never changed before our eyes: it is what it was when we came."""
    if fact is None:
        return not before and seen.modified <= reading.baseline
    return bool(fact.unlabelled) and not before and value_ids(fact.unlabelled) == value_ids(after)


def _remember(session: Session, fact: Fact | None, seen: Observation, change: Change, before: Values) -> Fact:
    """Write down the present state of the slot; what is not certain does not overwrite what was."""
    if fact is None:
        fact = Fact(
            qid=seen.qid, pid=seen.pid, subject_label=seen.subject_label, outcome="", reason="", values=before,
            revision=seen.revision, statement="", modified_at=change.modified_at, recorded_at=utc_now(),
            sitelinks=seen.sitelinks,
        )  # fmt: skip
    fact.outcome, fact.reason, fact.gone = seen.outcome.value, seen.reason, False
    fact.revision, fact.modified_at, fact.recorded_at = seen.revision, change.modified_at, utc_now()
    fact.unlabelled = change.new_values if seen.fault else []
    if seen.outcome is not Outcome.AMBIGUOUS:
        fact.values, fact.statement = change.new_values, seen.statement
        fact.subject_label = seen.subject_label or fact.subject_label
    session.add(fact)
    return fact


def _keep_out(session: Session, change: Change, reason: str) -> None:
    """Record a change that cannot be told, and with it the other ends of those that it overtakes."""
    change.state = ChangeState.QUARANTINED
    overtaken = record_change(session, change)
    quarantine(session, change, reason, None)
    for other_end in _carry_over(session, change, overtaken):
        quarantine(session, other_end, f"its other end is kept out: {reason}", None)


def _record_with_other_ends(
    session: Session, change: Change, before: Values, relations: Mapping[str, Relation]
) -> None:
    overtaken = record_change(session, change)
    expand(session, change, before, relations)
    if change.state is not ChangeState.REVERTED:
        _carry_over(session, change, overtaken)


def _carry_over(session: Session, change: Change, overtaken: Change | None) -> list[Change]:
    """What an overtaken change said at its objects' ends and still holds goes on with the change that overtook it.

    Otherwise the two ends of a fact would settle at different times.
    """
    carried = []
    for other_end in [] if overtaken is None else expanded_from(session, overtaken, OPEN):
        again = Change(
            qid=other_end.qid, pid=other_end.pid, subject_label=other_end.subject_label,
            old_values=other_end.old_values, new_values=other_end.new_values, revision=change.revision,
            statement=change.statement, modified_at=change.modified_at, cycle_id=change.cycle_id,
            origin_id=key(change), state=ChangeState.SETTLING,
        )  # fmt: skip
        record_change(session, again)
        carried.append(again)
    return carried
