"""What differs between two versions: beliefs, edits, and what the gate measured. Plain data, ready for JSON."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from sqlmodel import col, select

from daemon.beliefs import Holding
from daemon.runtime import BASE_VERSION
from store.ledger import get_version, ledger_edits
from store.tables import Belief, Change, Edit, Fact, GateMeasure, Version

if TYPE_CHECKING:
    from sqlmodel import Session

Row = dict[str, Any]
Slot = tuple[str, str]


def version_diff(session: Session, before: int, after: int) -> Row:
    """Compare two versions in the order given.

    A belief has changed where both versions were asked about the slot and their beliefs differ, in kind or in the value
    that is held or named. What a version says where it has no definite answer does not count.

    Raises:
        UnknownVersion: there is no such version.
    """
    versions = [get_version(session, number) for number in (before, after)]
    edits = [{edit.id: edit for edit in ledger_edits(session, number)} for number in (before, after)]
    beliefs = [_beliefs(session, number) for number in (before, after)]
    both = sorted(beliefs[0].keys() & beliefs[1].keys())
    changed = [slot for slot in both if _said(beliefs[0][slot]) != _said(beliefs[1][slot])]
    subjects = _subjects(session, changed)
    return {
        "before": _version(versions[0], len(edits[0])),
        "after": _version(versions[1], len(edits[1])),
        "edits": {
            "added": [_edit(edit) for number, edit in edits[1].items() if number not in edits[0]],
            "removed": [_edit(edit) for number, edit in edits[0].items() if number not in edits[1]],
        },
        "beliefs": {
            "asked": {"before": len(beliefs[0]), "after": len(beliefs[1]), "both": len(both)},
            "kinds": _kinds([(beliefs[0][slot].belief, beliefs[1][slot].belief) for slot in both]),
            "changed": [
                {"qid": slot[0], "pid": slot[1], "subject": subjects.get(slot, slot[0])}
                | {name: _belief(side[slot]) for name, side in zip(("before", "after"), beliefs, strict=True)}
                for slot in changed
            ],
        },
        "gate": _gate(session, versions[0], versions[1]),
    }


def _version(version: Version, edits: int) -> Row:
    return {"id": version.id, "state": version.state.value, "edits": edits, "reason": version.reason}


def _edit(edit: Edit) -> Row:
    return edit.model_dump(mode="json", include={"id", "qid", "pid", "subject", "target", "former"})


def _beliefs(session: Session, number: int) -> dict[Slot, Belief]:
    rows = session.exec(select(Belief).where(Belief.version_id == number))
    return {(belief.qid, belief.pid): belief for belief in rows}


def _said(belief: Belief) -> tuple[str, str | None]:
    values = {
        Holding.HOLDS: belief.expected, Holding.OUTDATED: belief.former, Holding.OTHER: belief.answer,
        Holding.UNKNOWN: None,
    }  # fmt: skip
    return belief.belief, values[Holding(belief.belief)]


def _belief(belief: Belief) -> Row:
    return belief.model_dump(mode="json", exclude={"version_id", "qid", "pid"})


def _kinds(moves: list[Slot]) -> list[Row]:
    """How many slots went from which belief to which, the largest moves first."""
    counted = Counter(moves)
    return [
        {"before": before, "after": after, "facts": count}
        for (before, after), count in sorted(counted.items(), key=lambda entry: (-entry[1], entry[0]))
    ]


def _subjects(session: Session, slots: list[Slot]) -> dict[Slot, str]:
    """What the subjects are called, by recorded facts, or by the changes that told of a slot."""
    labels: dict[Slot, str] = {}
    for table in (Fact, Change):
        wanted = select(table.qid, table.pid, table.subject_label).where(col(table.qid).in_({qid for qid, _ in slots}))
        for qid, pid, label in session.exec(wanted):
            if (qid, pid) not in labels and label:
                labels[qid, pid] = label
    return labels


def _gate(session: Session, before: Version, after: Version) -> list[Row]:
    """The figures of each measure side by side.

    Two versions have probe sets of their own. Where one was compared with the other when it was decided, ``same``
    holds both figures on that one probe set.
    """
    own = [_figures(session, version.id) for version in (before, after)]
    same = {
        measure: {"before": reference, "after": candidate}
        for measure, candidate, reference in _compared(session, after, before)
    }
    same |= {
        measure: {"before": candidate, "after": reference}
        for measure, candidate, reference in _compared(session, before, after)
    }
    return [
        {"measure": measure, "before": own[0].get(measure), "after": own[1].get(measure), "same": same.get(measure)}
        for measure in dict.fromkeys((*own[1], *own[0]))
    ]


def _figures(session: Session, number: int) -> dict[str, float]:
    rows = session.exec(select(GateMeasure).where(GateMeasure.version_id == number).order_by(col(GateMeasure.id)))
    return {row.measure: row.candidate for row in rows if row.candidate is not None}


def _compared(session: Session, candidate: Version, other: Version) -> list[tuple[str, float, float]]:
    """Each measure of a candidate and of the other version on the candidate's probes, where the gate compared them."""
    against = {"base"} if other.id == BASE_VERSION else set()
    if candidate.parent_id == other.id:
        against.add("promoted")
    rows = session.exec(
        select(GateMeasure)
        .where(GateMeasure.version_id == candidate.id, col(GateMeasure.against).in_(against))
        .order_by(col(GateMeasure.id))
    )
    return [
        (row.measure, row.candidate, row.reference)
        for row in rows
        if row.candidate is not None and row.reference is not None
    ]
