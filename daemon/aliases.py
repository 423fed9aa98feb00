"""Aliases: other names of the values that changes tell of, so that an answer which uses one is understood.

A value that is called otherwise is still given. Nothing waits for aliases: without them an answer may count as another,
and a fact that the model holds already is written once more.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from sqlmodel import col, select

from sources import Banned, SourceError, Throttled, ValueKind
from store.changes import IN_PLAY
from store.tables import Aliases, Change, utc_now

if TYPE_CHECKING:
    from daemon.runtime import Runtime
    from sources import WikidataSource


def read_aliases(runtime: Runtime, source: WikidataSource) -> None:
    """Read the aliases of values in play that are not known, or were read longer ago than a reconcile takes.

    Raises:
        Throttled, Banned: the source asked to be left alone. Other failures are logged, and the next pull tries again.
    """
    most, size = runtime.settings.source.aliases, runtime.settings.source.chunk
    wanted = _due(runtime) if most else []
    for start in range(0, len(wanted), size):
        try:
            found = source.aliases(wanted[start : start + size], most)
        except (Throttled, Banned):
            raise
        except SourceError as error:
            runtime.log.warning("aliases not read", items=len(wanted) - start, detail=str(error))
            return
        with runtime.database.transaction() as session:
            for qid, names in found.items():
                session.merge(Aliases(qid=qid, names=list(names), read_at=utc_now()))
        runtime.progress("aliases", min(start + size, len(wanted)), len(wanted))


def _due(runtime: Runtime) -> list[str]:
    """Items that changes in play name as values, in the order of the changes."""
    fresh = utc_now() - timedelta(seconds=runtime.settings.source.reconcile_seconds)
    with runtime.database.read() as session:
        known = set(session.exec(select(Aliases.qid).where(col(Aliases.read_at) > fresh)))
        changes = select(Change.new_values, Change.old_values).where(col(Change.state).in_(IN_PLAY))
        named = {
            value["id"]: None
            for both in session.exec(changes.order_by(col(Change.id)))
            for values in both
            for value in values
            if value["kind"] == ValueKind.ITEM
        }
    return [qid for qid in named if qid not in known]
