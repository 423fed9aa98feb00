"""What an operator can ask of the recorded state: status, versions, facts, and why. Plain data, ready for JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from sqlmodel import SQLModel, col, func, select

from daemon.breaker import latches
from daemon.errors import NotPossible
from daemon.outbox import held_by, newest_of
from daemon.patience import resting
from store.ledger import held_candidate, ledger_edits, promoted
from store.tables import (
    Belief,
    Change,
    Control,
    Cycle,
    Edit,
    Fact,
    GateMeasure,
    LedgerEntry,
    ProbeResult,
    ProbeSet,
    Publication,
    Quarantine,
    SourceCursor,
    UnreadItem,
    Version,
)

if TYPE_CHECKING:
    from sqlmodel import Session

Row = dict[str, Any]


def status(session: Session) -> Row:
    """Where the service stands."""
    version = promoted(session)
    waiting = held_candidate(session)
    cycle = session.exec(select(Cycle).order_by(col(Cycle.id).desc()).limit(1)).first()
    states = session.exec(select(Change.state, func.count()).group_by(Change.state)).all()
    return {
        "promoted": None if version is None else version.id,
        "held_candidate": None if waiting is None else waiting.id,
        "live_edits": 0 if version is None else len(ledger_edits(session, version.id)),
        "facts": session.exec(select(func.count()).select_from(Fact)).one(),
        "changes": {str(state): count for state, count in states},
        "quarantined": session.exec(
            select(func.count()).select_from(Quarantine).where(col(Quarantine.released_at).is_(None))
        ).one(),
        "paused": (control := session.get(Control, "paused")) is not None and control.value == "yes",
        "unread_items": session.exec(select(func.count()).select_from(UnreadItem)).one(),
        "breakers": [asdict(latch) for latch in latches(session)],
        "resting": resting(session),
        "sources": [_row(cursor) for cursor in session.exec(select(SourceCursor))],
        "last_cycle": None if cycle is None else _row(cycle),
        "publications": publications(session),
    }


def publications(session: Session) -> list[Row]:
    """For each target the version it was last brought to, and how its newest publication stands."""
    rows = []
    for target in session.exec(select(Publication.target).distinct().order_by(Publication.target)).all():
        newest = newest_of(session, target)
        assert newest is not None
        rows.append({"target": target, "has": held_by(session, target), "newest": _row(newest, "target")})
    return rows


def versions(session: Session) -> list[Row]:
    """Every version, oldest first, with the size of its ledger and what the gate measured."""
    sizes = dict(session.exec(select(LedgerEntry.version_id, func.count()).group_by(col(LedgerEntry.version_id))).all())
    digests = dict(session.exec(select(ProbeSet.id, ProbeSet.digest)).all())
    measures: dict[int, list[Row]] = {}
    probe_sets: dict[int, Row] = {}
    for measure in session.exec(select(GateMeasure).order_by(col(GateMeasure.id))):
        measures.setdefault(measure.version_id, []).append(_row(measure, "id", "version_id", "probe_set_id"))
        if measure.probe_set_id is not None:
            number = measure.probe_set_id
            probe_sets[measure.version_id] = {"number": number, "digest": digests[number]}
    return [
        _row(version)
        | {
            "edits": sizes.get(version.id, 0),
            "probe_set": probe_sets.get(version.id),
            "gate": measures.get(version.id, []),
        }
        for version in session.exec(select(Version).order_by(col(Version.id)))
    ]


def facts(session: Session, property_id: str | None, state: str | None) -> list[Row]:
    """Recorded facts with the state of their last change (``recorded`` where there was none)."""
    wanted = select(Fact).order_by(col(Fact.pid), col(Fact.qid))
    if property_id is not None:
        wanted = wanted.where(Fact.pid == property_id)
    last: dict[tuple[str, str], Change] = {}
    for change in session.exec(select(Change).order_by(col(Change.id))):
        last[change.qid, change.pid] = change
    rows = []
    for fact in session.exec(wanted):
        latest = last.get((fact.qid, fact.pid))
        row = _row(fact) | {"state": "recorded" if latest is None else latest.state.value}
        if state is None or row["state"] == state:
            rows.append(row)
    return rows


def why(session: Session, qid: str, pid: str | None) -> list[Row]:
    """The whole story of a subject's facts: source, changes, beliefs, edits, versions and probes.

    Raises:
        NotPossible: nothing is recorded about it.
    """
    # A slot that only expansion told of has changes and no fact.
    told = set(session.exec(select(Fact.pid).where(Fact.qid == qid)))
    told |= set(session.exec(select(Change.pid).where(Change.qid == qid)))
    stories = [_story(session, qid, slot) for slot in sorted(told) if pid in (None, slot)]
    if not stories:
        raise NotPossible(f"no fact of {qid}{f' {pid}' if pid else ''} is recorded: see `factsyncd facts`")
    return stories


def quarantined(session: Session) -> list[Row]:
    """What is kept out at present, with the reasons: changes, and items that could not be read (``kind``)."""
    rows = select(Quarantine, Change).join(Change, col(Change.id) == col(Quarantine.change_id))
    changes = [
        _row(kept) | {"kind": "change", "subject": change.subject_label, "new_values": change.new_values}
        for kept, change in session.exec(rows.where(col(Quarantine.released_at).is_(None)).order_by(col(Quarantine.id)))
    ]
    items = session.exec(select(UnreadItem).order_by(col(UnreadItem.created_at), UnreadItem.qid))
    return changes + [_row(item) | {"kind": "item"} for item in items]


def _story(session: Session, qid: str, pid: str) -> Row:
    def about(table: type[Any], order: Any) -> list[Row]:
        rows = select(table).where(table.qid == qid, table.pid == pid).order_by(order)
        return [_row(row) for row in session.exec(rows)]

    changes = about(Change, col(Change.id))
    for change in changes:
        origin = None if change["origin_id"] is None else session.get_one(Change, change["origin_id"])
        change["expanded_from"] = None if origin is None else {"qid": origin.qid, "pid": origin.pid}
        expanded = select(Change).where(Change.origin_id == change["id"]).order_by(col(Change.id))
        change["expanded_to"] = [_row(other) for other in session.exec(expanded)]
    edits = about(Edit, col(Edit.id))
    for edit in edits:
        entries = select(LedgerEntry.version_id).where(LedgerEntry.edit_id == edit["id"])
        edit["live_in_versions"] = sorted(session.exec(entries))
    fact = session.get(Fact, (qid, pid))
    return {
        "fact": None if fact is None else _row(fact),
        "changes": changes,
        "beliefs": about(Belief, col(Belief.version_id)),
        "edits": edits,
        "probes": about(ProbeResult, col(ProbeResult.id)),
        "quarantine": about(Quarantine, col(Quarantine.id)),
    }


def _row(record: SQLModel, *without: str) -> Row:
    """A table row as JSON-ready data."""
    return record.model_dump(mode="json", exclude=set(without))
