"""Observations as a source gives them, and what they left in the database."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from sqlmodel import col, select

from daemon.record import Reading, record
from daemon.settle import settle
from sources import Observation, Outcome, Value, ValueKind, load_catalogue
from store.tables import Change, ChangeState, Cycle, Edit, Fact, LedgerEntry, Version, VersionState, key

if TYPE_CHECKING:
    from store import Database

START = datetime(2022, 1, 1, tzinfo=UTC)
RELATIONS = load_catalogue()
LEADER, LEADER_OF, TWIN = "P6", "^P6", "P190"


def moment(hours: float) -> datetime:
    return START + timedelta(hours=hours)


def seen(hours: float, qid: str, pid: str, *values: str, label: str | None = None, revision: int | None = None,
         outcome: Outcome | None = None) -> Observation:  # fmt: skip
    """What a slot said that many hours after the baseline; ``Q5`` is called "L5", ``Q5=Name`` "Name"."""
    named = [value.partition("=") for value in values]
    items = tuple(Value(ValueKind.ITEM, name, words or f"L{name[1:]}") for name, _, words in named)
    told = outcome or {0: Outcome.NONE, 1: Outcome.VALUE}.get(len(values), Outcome.SEVERAL)
    number = int(100 + hours * 60) if revision is None else revision
    return Observation(
        qid, f"L{qid[1:]}" if label is None else label, pid, told, items, told.value, number, moment(hours),
        f"{qid}-{number}",
    )  # fmt: skip


def faulty(hours: float, qid: str, pid: str, *values: str, subject: bool = False) -> Observation:
    """The same with labels that cannot stand in a prompt: of the values, or of the subject."""
    good = seen(hours, qid, pid, *values, outcome=Outcome.AMBIGUOUS)
    return replace(
        good, values=tuple(replace(value, label="") for value in good.values), statement="",
        subject_label="" if subject else good.subject_label, fault="label with a brace", reason="label with a brace",
    )  # fmt: skip


class Book:
    """A database that observations are recorded in, one pull after the other."""

    def __init__(self, database: Database) -> None:
        self.database = database
        with database.transaction() as session:
            cycle = Cycle()
            session.add(cycle)
        self.cycle_id = key(cycle)

    def read(self, *observations: Observation, at: float | None = None) -> int:
        """Record observations that a source complete up to then gave; returns how many were changes."""
        latest = max((one.modified for one in observations), default=START)
        replicated = latest if at is None else moment(at)
        reading = Reading(self.cycle_id, replicated, START, RELATIONS)
        with self.database.transaction() as session:
            return sum(record(session, one, reading) for one in observations)

    def settle(self, at: float, hours: float = 1.0, polls: int = 1, held: tuple[str, ...] = ()) -> tuple[int, int]:
        """End a pull of a source complete up to then."""
        with self.database.transaction() as session:
            return settle(session, (timedelta(hours=hours), polls), moment(at), held)

    def changes(self) -> list[Change]:
        with self.database.read() as session:
            return list(session.exec(select(Change).order_by(col(Change.id))))

    def told(self) -> list[tuple[str, str, str, str, str]]:
        """Every change as (subject, property, old labels, new labels, state)."""
        return [
            (
                change.qid, change.pid, ",".join(v["label"] or v["id"] for v in change.old_values),
                ",".join(v["label"] or v["id"] for v in change.new_values), change.state.value,
            )
            for change in self.changes()
        ]  # fmt: skip

    def standing(self) -> dict[tuple[str, str], tuple[str, str, str]]:
        """Old and new labels and the state of what may still be written, by slot."""
        over = {"superseded", "reverted"}
        return {(q, p): (old, new, state) for q, p, old, new, state in self.told() if state not in over}

    def fact(self, qid: str, pid: str) -> Fact:
        with self.database.read() as session:
            return session.get_one(Fact, (qid, pid))

    def write(self) -> None:
        """Promote a version that holds every pending change as an edit, as whole cycles would."""
        with self.database.transaction() as session:
            present = session.exec(select(Version).where(Version.state == VersionState.PROMOTED)).one_or_none()
            number = 0 if present is None else present.id + 1
            if present is not None:
                present.state = VersionState.RETIRED
                session.flush()
            session.add(Version(id=number, state=VersionState.PROMOTED, base_digest="b", settings_digest="s"))
            ledger: dict[tuple[str, str], Change] = {}
            for change in session.exec(
                select(Change).where(col(Change.state).in_(("pending", "live"))).order_by(col(Change.id))
            ):
                if (former := ledger.pop((change.qid, change.pid), None)) is not None:
                    former.state = ChangeState.SUPERSEDED
                if change.new_values:
                    change.state = ChangeState.LIVE
                    ledger[change.qid, change.pid] = change
                else:
                    change.state = ChangeState.UNEDITABLE if former is None else ChangeState.WITHDRAWN
            for change in ledger.values():
                edit = session.exec(select(Edit).where(Edit.change_id == change.id)).one_or_none()
                if edit is None:
                    edit = Edit(
                        change_id=key(change), qid=change.qid, pid=change.pid, prompt="{} is", variants=[],
                        subject=change.subject_label, target=change.new_values[0]["label"], former=None,
                    )  # fmt: skip
                    session.add(edit)
                session.flush()
                session.add(LedgerEntry(version_id=number, edit_id=key(edit)))
