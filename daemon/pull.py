"""Pull: record what changed at the source since it was last read.

Each page's facts, changes and cursor are committed together, so a kill between pages loses nothing.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from daemon.expansion import expand, expanded_values
from sources import Cursor, Observation, Outcome, Page
from store.changes import record_change
from store.cycles import advance
from store.tables import Change, Control, Fact, Phase, SourceCursor, Values, utc_now

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlmodel import Session

    from daemon.runtime import Runtime
    from sources import Relation, WikidataSource

BASELINE = "baseline"
"""Control: facts first seen at or before this time are recorded, not edited."""
EVERYTHING = datetime(1, 1, 1, tzinfo=UTC)


def pull(runtime: Runtime, cycle_id: int) -> None:
    """Record facts and changes up to the source's present.

    Raises:
        SourceError: the source failed; pages recorded before stay, the cursor stands behind them.
    """
    source = runtime.open_source()
    cursor, baseline = _where_we_stand(runtime, source)
    items = changes = 0
    for page in source.pages(cursor):
        with runtime.database.transaction() as session:
            changes += record_page(session, page, baseline, cycle_id, runtime.relations)
            _set_cursor(session, runtime.source_name, page.cursor)
        items += page.items
        runtime.progress("pull", items, items)
    runtime.metrics.watermark(runtime.source_name, source.replication_time())
    runtime.log.info("pulled", items=items, changes=changes)
    with runtime.database.transaction() as session:
        advance(session, cycle_id, Phase.DIFF, items=items, changes=changes)


def _where_we_stand(runtime: Runtime, source: WikidataSource) -> tuple[Cursor | None, datetime]:
    """The cursor, and the time up to which facts are the baseline (fixed before the first page is read)."""
    with runtime.database.transaction() as session:
        stored = session.get(SourceCursor, runtime.source_name)
        control = session.get(Control, BASELINE)
        if control is None:
            recorded_only = runtime.settings.source.first_load == "record"
            moment = source.replication_time() if recorded_only else EVERYTHING
            control = Control(key=BASELINE, value=moment.isoformat())
            session.add(control)
        baseline = datetime.fromisoformat(control.value)
    return (None if stored is None else Cursor(stored.modified_at, stored.revision)), baseline


def _set_cursor(session: Session, source: str, cursor: Cursor) -> None:
    session.merge(
        SourceCursor(source=source, modified_at=cursor.modified, revision=cursor.revision, updated_at=utc_now())
    )


def record_page(
    session: Session, page: Page, baseline: datetime, cycle_id: int, relations: Mapping[str, Relation]
) -> int:
    """Record a page's observations and what they change, in both directions; returns how many were changes.

    Recording a page again changes nothing.
    """
    return sum(_record(session, seen, baseline, cycle_id, relations) for seen in page.observations)


def _record(
    session: Session, seen: Observation, baseline: datetime, cycle_id: int, relations: Mapping[str, Relation]
) -> bool:
    fact = session.get(Fact, (seen.qid, seen.pid))
    if fact is not None and seen.revision <= fact.revision:
        return False
    if fact is None and not seen.values:
        return False  # never had a value: not a slot we track
    before: Values = expanded_values(session, seen.qid, seen.pid, relations) if fact is None else fact.values
    after: Values = [{"kind": value.kind.value, "id": value.id, "label": value.label} for value in seen.values]
    of_baseline = fact is None and not before and seen.modified <= baseline
    if fact is None:
        fact = Fact(
            qid=seen.qid, pid=seen.pid, subject_label=seen.subject_label, outcome=seen.outcome.value,
            reason=seen.reason, values=after, revision=seen.revision, statement=seen.statement,
            modified_at=seen.modified, recorded_at=utc_now(),
        )  # fmt: skip
    fact.outcome, fact.reason = seen.outcome.value, seen.reason
    fact.revision, fact.modified_at, fact.recorded_at = seen.revision, seen.modified, utc_now()
    if seen.outcome is not Outcome.AMBIGUOUS:
        # An ambiguous moment does not overwrite the last value that was certain, nor the label it was told with.
        fact.values, fact.statement = after, seen.statement
        fact.subject_label = seen.subject_label or fact.subject_label
    session.add(fact)
    differs = [value["id"] for value in before] != [value["id"] for value in after]
    if not differs or of_baseline or seen.outcome is Outcome.AMBIGUOUS:
        return False
    change = Change(
        qid=seen.qid, pid=seen.pid, subject_label=fact.subject_label, old_values=before, new_values=after,
        revision=seen.revision, statement=seen.statement, modified_at=seen.modified, cycle_id=cycle_id,
    )  # fmt: skip
    record_change(session, change)
    expand(session, change, relations)
    return True
