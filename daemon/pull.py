"""Pull: record what changed at the source since it was last read, and settle what has stood for long enough.

Each page's facts, changes and cursor are committed together, so a kill between pages loses nothing.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from daemon import breaker
from daemon.aliases import read_aliases
from daemon.audit import audit_when_due
from daemon.patience import asking
from daemon.record import Reading, record_page
from daemon.settle import settle
from daemon.tracking import all_is_fresh, look_after
from daemon.unread import note_page
from sources import Cursor
from store.cycles import advance
from store.tables import Control, Phase, SourceCursor, utc_now

if TYPE_CHECKING:
    from sqlmodel import Session

    from daemon.runtime import Runtime
    from sources import WikidataSource

BASELINE = "baseline"
"""Control: facts first seen at or before this time are recorded, not edited."""
LOAD = "load"
"""Control: everything is being read, for the ``first`` time or again (``full``); gone once all of it is read."""
FIRST, FULL = "first", "full"
EVERYTHING = datetime(1, 1, 1, tzinfo=UTC)
PROGRESS_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class _Stand:
    """How far a source was read, and which load of everything is unfinished (empty: none)."""

    cursor: Cursor | None
    load: str


def pull(runtime: Runtime, cycle_id: int) -> None:
    """Record facts and changes up to the source's present.

    Raises:
        TooEarly: the source asked to be left alone for a while.
        SourceError: the source failed; pages recorded before stay, the cursor stands behind them.
    """
    with asking(runtime, runtime.source_name):
        stand = _where_we_stand(runtime)
        # While everything is read, the cursor is as old as the oldest item.
        source = runtime.open_source(forgetful=not stand.load)
        replicated = source.replication_time()
        runtime.metrics.replicated(runtime.source_name, replicated)
        reading = Reading(
            cycle_id, replicated, _baseline(runtime, replicated), runtime.relations, first_load=stand.load == FIRST
        )
        items, changes = _read_feed(runtime, source, stand, reading)
        if stand.load:
            _end_load(runtime, stand.load)
        changes += look_after(runtime, source, reading)
        read_aliases(runtime, source)
        audit_when_due(runtime, source)
    _settle(runtime, reading, items, changes)


def start_over(runtime: Runtime) -> None:
    """Have the next pull read everything again, whatever the cursor; what is recorded stays."""
    with runtime.database.transaction() as session:
        stored = session.get(SourceCursor, runtime.source_name)
        if stored is not None:
            session.delete(stored)
            session.merge(Control(key=LOAD, value=FULL, updated_at=utc_now()))


def _where_we_stand(runtime: Runtime) -> _Stand:
    with runtime.database.transaction() as session:
        stored = session.get(SourceCursor, runtime.source_name)
        load = session.get(Control, LOAD)
        if load is None and stored is None:
            # Another address, or another snapshot's path, is read whole over what is recorded.
            load = Control(key=LOAD, value=FIRST if session.get(Control, BASELINE) is None else FULL)
            session.add(load)
        cursor = None if stored is None else Cursor(stored.modified_at, stored.revision)
        return _Stand(cursor, "" if load is None else load.value)


def _baseline(runtime: Runtime, replicated: datetime) -> datetime:
    """The time up to which facts are the baseline, fixed before the first page is read."""
    with runtime.database.transaction() as session:
        control = session.get(Control, BASELINE)
        if control is None:
            moment = replicated if runtime.settings.source.first_load == "record" else EVERYTHING
            control = Control(key=BASELINE, value=moment.isoformat())
            session.add(control)
        return datetime.fromisoformat(control.value)


def _read_feed(runtime: Runtime, source: WikidataSource, stand: _Stand, reading: Reading) -> tuple[int, int]:
    """Record the feed from the cursor on; returns how many items were read and changes recorded."""
    items = changes = 0
    told = time.monotonic()
    for page in source.pages(stand.cursor):
        with runtime.database.transaction() as session:
            changes += record_page(session, page, reading)
            note_page(session, page)
            assert page.cursor is not None  # as of every page of the feed
            _set_cursor(session, runtime.source_name, page.cursor)
        items += page.items
        runtime.metrics.items(page.items)
        runtime.progress(f"pull: up to {page.cursor.modified:%Y-%m-%d}", items, 0)
        if time.monotonic() - told >= PROGRESS_SECONDS:
            told = time.monotonic()
            runtime.log.info("reading", items=items, changes=changes, reached=page.cursor.modified.isoformat())
    return items, changes


def _set_cursor(session: Session, source: str, cursor: Cursor) -> None:
    session.merge(
        SourceCursor(source=source, modified_at=cursor.modified, revision=cursor.revision, updated_at=utc_now())
    )


def _end_load(runtime: Runtime, load: str) -> None:
    """Everything is read: from now on changes settle, and count for the breaker."""
    all_is_fresh(runtime)
    with runtime.database.transaction() as session:
        if load == FIRST:
            breaker.acknowledge(session)
        session.delete(session.get_one(Control, LOAD))


def _settle(runtime: Runtime, reading: Reading, items: int, changes: int) -> None:
    with runtime.database.transaction() as session:
        tripped, reset = breaker.watch(session, runtime.settings)
        held = [latch.property for latch in tripped]
        settled, settling = settle(session, runtime.settings.settling, reading.replicated, held)
        advance(session, reading.cycle_id, Phase.DIFF, items=items, changes=changes, settled=settled, settling=settling)
    for latch in tripped:
        runtime.log.warning("breaker tripped", property=latch.property, changes=latch.changes, facts=latch.facts)
    for name in reset:
        runtime.log.info("breaker reset by itself", property=name)
    runtime.log.info("pulled", items=items, changes=changes, settled=settled, settling=settling)
