"""Expansion: a changed fact told from its object's end, where the catalogue has words for that.

(Kazakhstan, capital, Astana) also says (Astana, capital of, Kazakhstan). The object's slot is not read from the source
but gathered from the recorded facts that name it: its values are all their subjects. What Wikidata states about the
slot itself wins over what is gathered.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlmodel import String, cast, col, select

from sources import ValueKind
from store.changes import in_play, newest_change, record_change
from store.tables import Change, ChangeState, Fact, Values

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlmodel import Session

    from sources import Relation


def expand(session: Session, change: Change, before: Values, relations: Mapping[str, Relation]) -> None:
    """Record what a change of a recorded fact changes at its objects' ends.

    Args:
        session: of the transaction that records the change.
        change: as recorded; or not recorded, where only labels differ and the slot itself has nothing to rewrite.
        before: the slot's values recorded last, which are not ``change.old_values`` if it merged with another.
        relations: those that are watched.
    """
    opposite = relations[change.pid].opposite
    if opposite is None:
        return
    subject = {"kind": ValueKind.ITEM.value, "id": change.qid, "label": change.subject_label}
    former, present = _items(before), _items(change.new_values)
    for qid, label in (former | present).items():
        if _is_stated(session, qid, opposite, relations):
            continue
        others = _subjects(session, qid, opposite, relations, change)
        without, with_it = _in_order(others), _in_order(others | {change.qid: subject})
        if qid in former and qid in present:
            other_end = _renamed(session, qid, opposite, label, with_it)
        elif change.qid in others:
            continue  # it names the object in another property that says the same
        else:
            other_end = (without, with_it) if qid in present else (with_it, without)
        if other_end is not None:
            record_change(
                session,
                Change(
                    qid=qid, pid=opposite, subject_label=label, old_values=other_end[0], new_values=other_end[1],
                    revision=change.revision, statement=change.statement, modified_at=change.modified_at,
                    cycle_id=change.cycle_id, origin_id=change.id,
                    # What the origin merged into nothing may still leave something to do here.
                    state=ChangeState.PENDING if change.state is ChangeState.PENDING else ChangeState.SETTLING,
                ),
            )  # fmt: skip


def _renamed(session: Session, qid: str, pid: str, label: str, values: Values) -> tuple[Values, Values] | None:
    """Former and present values of a gathered slot that is told in words which are no longer right; else None."""
    last = newest_change(session, qid, pid)
    if last is None or (last.new_values, last.subject_label) == (values, label) or not in_play(session, qid, pid):
        return None
    return last.new_values, values


def expanded_values(session: Session, qid: str, pid: str, relations: Mapping[str, Relation]) -> Values:
    """What was gathered for a slot before Wikidata stated it itself."""
    if not any(relation.opposite == pid for relation in relations.values()):
        return []
    change = newest_change(session, qid, pid)
    return [] if change is None else change.new_values


def _is_stated(session: Session, qid: str, pid: str, relations: Mapping[str, Relation]) -> bool:
    """Whether Wikidata has, or had, a value of its own for the slot (and would tell us if it changed)."""
    return pid in relations and session.get(Fact, (qid, pid)) is not None


def _subjects(
    session: Session, qid: str, opposite: str, relations: Mapping[str, Relation], change: Change
) -> dict[str, dict[str, str]]:
    """The subjects of all other facts that name the object, as values by Q-id."""
    naming = [relation.pid for relation in relations.values() if relation.opposite == opposite]
    # The text narrows down; only the values themselves decide.
    facts = select(Fact).where(col(Fact.pid).in_(naming), cast(col(Fact.values), String).contains(f'"{qid}"'))
    return {
        fact.qid: {"kind": ValueKind.ITEM.value, "id": fact.qid, "label": fact.subject_label}
        for fact in session.exec(facts)
        if qid in _items(fact.values) and (fact.qid, fact.pid) != (change.qid, change.pid)
    }


def _items(values: Values) -> dict[str, str]:
    """Labels of the items among values, by Q-id."""
    return {value["id"]: value["label"] for value in values if value["kind"] == ValueKind.ITEM.value}


def _in_order(values: Mapping[str, dict[str, str]]) -> Values:
    return sorted(values.values(), key=_order)


def _order(value: dict[str, str]) -> tuple[int, str]:
    """Q9 before Q10, as the source orders values."""
    return len(value["id"]), value["id"]
