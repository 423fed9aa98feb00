"""Expansion: a changed fact told from its object's end, where the catalogue has words for that.

(Kazakhstan, capital, Astana) also says (Astana, capital of, Kazakhstan). The object's slot is not read from the source
but gathered from the recorded facts that name it: its values are all their subjects. What Wikidata states about the
slot itself wins over what is gathered.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlmodel import String, cast, col, select

from sources import ValueKind
from store.changes import newest_change, record_change
from store.tables import Change, Fact, Values, key

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlmodel import Session

    from sources import Relation


def expand(session: Session, change: Change, relations: Mapping[str, Relation]) -> None:
    """Record what a change of a recorded fact changes at its objects' ends.

    Args:
        session: of the transaction that records the change.
        change: as recorded.
        relations: those that are watched.
    """
    opposite = relations[change.pid].opposite
    if opposite is None:
        return
    subject = {"kind": ValueKind.ITEM.value, "id": change.qid, "label": change.subject_label}
    before, after = _items(change.old_values), _items(change.new_values)
    for qid, label in (before | after).items():
        if (qid in before) == (qid in after) or _is_stated(session, qid, opposite, relations):
            continue
        others = _subjects(session, qid, opposite, relations, change)
        if change.qid in others:
            continue  # it names the object in another property that says the same
        without = sorted(others.values(), key=_order)
        with_it = sorted([*without, subject], key=_order)
        old_values, new_values = (without, with_it) if qid in after else (with_it, without)
        record_change(
            session,
            Change(
                qid=qid, pid=opposite, subject_label=label, old_values=old_values, new_values=new_values,
                revision=change.revision, statement=change.statement, modified_at=change.modified_at,
                cycle_id=change.cycle_id, origin_id=key(change),
            ),
        )  # fmt: skip


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


def _order(value: dict[str, str]) -> tuple[int, str]:
    """Q9 before Q10, as the source orders values."""
    return len(value["id"]), value["id"]
