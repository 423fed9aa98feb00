"""Tracking: what the feed of modifications does not tell about items we track.

Deleted and merged items, the last watched statement gone, a value's new label, an end that passes: none of these moves
a modification that the feed asks for. So revisions are compared, and now and then everything is read again. A round
goes through the tracked items in the order of their ids and keeps its place in the database.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from sqlmodel import Integer, cast, col, func, select

from daemon.record import Reading, record, record_page
from daemon.unread import due, forget, note_page
from sources import BadAnswer, Observation, Outcome, Standing, StandingState, Value, ValueKind
from store.changes import IN_PLAY
from store.tables import Change, ChangeState, Control, Fact, utc_now

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from daemon.runtime import Runtime
    from sources import WikidataSource

REVISIONS, EVERYTHING = "tracked revisions", "tracked reconcile"
"""Controls: where each round stands, and when the last one ended."""


@dataclass(frozen=True, slots=True)
class Tracked:
    """An item with facts, the revision they were read at, and whether it is deleted or merged."""

    qid: str
    revision: int
    gone: bool


def look_after(runtime: Runtime, source: WikidataSource, reading: Reading) -> int:
    """Read again what is due, and compare tracked items with the source; returns how many changes were recorded.

    Raises:
        SourceError: the source failed; what was recorded before stays, and the next call goes on.
    """
    carer = _Carer(runtime, source, reading)
    carer.read_unread()
    carer.compare(_gone_and_settling(runtime))
    wanted = runtime.settings.source
    if carer.round(REVISIONS, wanted.revisions_seconds, carer.compare):
        carer.read_names()
    carer.round(EVERYTHING, wanted.reconcile_seconds, carer.read)
    return carer.changes


def all_is_fresh(runtime: Runtime) -> None:
    """Everything was just read: the next rounds are due one interval from now."""
    with runtime.database.transaction() as session:
        for key in (REVISIONS, EVERYTHING):
            session.merge(_place(key, "", utc_now().isoformat()))


def _place(key: str, after: str, ended: str) -> Control:
    return Control(key=key, value=json.dumps({"after": after, "ended": ended}), updated_at=utc_now())


def _gone_and_settling(runtime: Runtime) -> list[Tracked]:
    """Items whose end has not settled: only asking for them tells whether it stands."""
    with runtime.database.read() as session:
        ends = (
            select(Fact.qid, func.max(Fact.revision))
            .join(Change, (col(Change.qid) == col(Fact.qid)) & (col(Change.pid) == col(Fact.pid)))
            .where(col(Fact.gone).is_(True), Change.state == ChangeState.SETTLING)
            .group_by(col(Fact.qid))
        )
        return [Tracked(qid, revision, gone=True) for qid, revision in session.exec(ends)]


class _Carer:
    """One pull's look at tracked items."""

    def __init__(self, runtime: Runtime, source: WikidataSource, reading: Reading) -> None:
        self._runtime, self._source, self._reading = runtime, source, reading
        self.changes = 0

    def read_unread(self) -> None:
        """Ask again for items that could not be read."""
        with self._runtime.database.read() as session:
            qids = due(session)
        if not qids:
            return
        failed = self._observe(qids)
        with self._runtime.database.transaction() as session:
            forget(session, set(qids) - failed)

    def round(self, key: str, seconds: float, visit: Callable[[Sequence[Tracked]], None]) -> bool:
        """Visit all tracked items if the last round is that long ago, or go on with an unfinished one.

        Returns whether a round was ended.
        """
        with self._runtime.database.read() as session:
            stored = session.get(Control, key)
        place: dict[str, str] = {"after": "", "ended": ""} if stored is None else json.loads(stored.value)
        ended = place["ended"]
        if ended and not place["after"] and utc_now() - datetime.fromisoformat(ended) < timedelta(seconds=seconds):
            return False
        after, visited = place["after"], 0
        while chunk := self._tracked(after):
            visit(chunk)
            after, visited = chunk[-1].qid, visited + len(chunk)
            self._runtime.progress(key, visited, 0)
            with self._runtime.database.transaction() as session:
                session.merge(_place(key, after, ended))
        with self._runtime.database.transaction() as session:
            session.merge(_place(key, "", utc_now().isoformat()))
        return True

    def _tracked(self, after: str) -> list[Tracked]:
        items = (
            select(Fact.qid, func.max(Fact.revision), func.max(cast(col(Fact.gone), Integer)))
            .where(col(Fact.qid) > after, col(Fact.pid).in_(self._reading.relations))
            .group_by(col(Fact.qid))
            .order_by(col(Fact.qid))
            .limit(self._runtime.settings.source.chunk)
        )
        with self._runtime.database.read() as session:
            return [Tracked(qid, revision, bool(gone)) for qid, revision, gone in session.exec(items)]

    def compare(self, items: Sequence[Tracked]) -> None:
        """Find what became of items, and read those again that are not at the revision we know."""
        if not items:
            return
        known = {item.qid: item for item in items}
        try:
            standings = list(self._source.standing(list(known)))
        except BadAnswer as error:
            # The rest of the world goes on; these are asked for again in the next round.
            self._runtime.log.error("items not compared", first=items[0].qid, items=len(items), detail=str(error))
            return
        self._end(standing for standing in standings if _has_gone(standing) and not known[standing.qid].gone)
        self._observe([
            standing.qid for standing in standings
            if standing.state is StandingState.PRESENT
            and (known[standing.qid].gone or standing.revision > known[standing.qid].revision)
        ])  # fmt: skip

    def read(self, items: Sequence[Tracked]) -> None:
        """Read items again, whatever their revision."""
        self._observe([item.qid for item in items])

    def read_names(self) -> None:
        """Find new labels of values where they matter: the item that carries the fact is not modified by them."""
        facts = self._facts_in_play()
        wanted = list(dict.fromkeys(value["id"] for fact in facts for value in fact.values if _is_item(value)))
        size = self._runtime.settings.source.chunk
        names: dict[str, str] = {}
        for start in range(0, len(wanted), size):
            names |= self._source.names(wanted[start : start + size])
        with self._runtime.database.transaction() as session:
            for fact in facts:
                self.changes += record(session, _relabelled(fact, names), self._reading)

    def _facts_in_play(self) -> list[Fact]:
        """Certain facts of which an edit is live or may come to be, at either end."""
        with self._runtime.database.read() as session:
            slots = {}
            for change in session.exec(select(Change).where(col(Change.state).in_(IN_PLAY))):
                origin = change if change.origin_id is None else session.get_one(Change, change.origin_id)
                slots[origin.qid, origin.pid] = session.get(Fact, (origin.qid, origin.pid))
        return [
            fact for fact in slots.values()
            if fact is not None and fact.values and not fact.gone and fact.outcome != Outcome.AMBIGUOUS
            and fact.pid in self._reading.relations
        ]  # fmt: skip

    def _observe(self, qids: Sequence[str]) -> set[str]:
        """Record what items say now; returns those that could not be read."""
        failed: set[str] = set()
        for page in self._source.observe(qids, self._reading.replicated) if qids else ():
            with self._runtime.database.transaction() as session:
                self.changes += record_page(session, page, self._reading)
                note_page(session, page)
            self._runtime.metrics.items(page.items)
            failed |= {item.qid for item in page.failed}
        return failed

    def _end(self, standings: Iterable[Standing]) -> None:
        """End all facts of items that are no more."""
        for standing in standings:
            reason = f"merged into {standing.target}" if standing.target else "deleted at the source"
            with self._runtime.database.transaction() as session:
                facts = session.exec(select(Fact).where(Fact.qid == standing.qid)).all()
                if any(fact.modified_at >= self._reading.replicated for fact in facts):
                    continue  # what was modified since the source was complete is not ended by its answer
                for fact in facts:
                    if fact.pid in self._reading.relations:
                        self.changes += record(session, _ended(fact, reason), self._reading)
                    fact.gone = True
            self._runtime.log.info("item gone", item=standing.qid, reason=reason)


def _has_gone(standing: Standing) -> bool:
    return standing.state is not StandingState.PRESENT


def _is_item(value: dict[str, str]) -> bool:
    return value["kind"] == ValueKind.ITEM


def _ended(fact: Fact, reason: str) -> Observation:
    return Observation(
        qid=fact.qid, subject_label=fact.subject_label, pid=fact.pid, outcome=Outcome.NONE, values=(), reason=reason,
        revision=fact.revision, modified=fact.modified_at, statement="",
    )  # fmt: skip


def _relabelled(fact: Fact, names: dict[str, str]) -> Observation:
    """The fact as it was read, in today's words."""
    return Observation(
        qid=fact.qid, subject_label=fact.subject_label, pid=fact.pid, outcome=Outcome(fact.outcome),
        values=tuple(
            Value(ValueKind(value["kind"]), value["id"], names.get(value["id"], value["label"]))
            for value in fact.values
        ),
        reason=fact.reason, revision=fact.revision, modified=fact.modified_at, statement=fact.statement,
    )  # fmt: skip
