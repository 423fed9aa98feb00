"""Replay of real snapshots: recorded facts are the truth at every poll, no change is missed and none comes twice."""

from __future__ import annotations

import random
from collections import defaultdict
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from living_wiki import in_process
from replay import PROPERTIES, SNAPSHOTS, Replay, Slot, edits, instants, labels, snapshots
from sqlmodel import col, delete, select

from daemon.pull import pull
from store.tables import Change, Control, Cycle, Fact, SourceCursor, key

if TYPE_CHECKING:
    from datetime import datetime

    from daemon.runtime import Runtime
    from store import Database

pytestmark = pytest.mark.skipif(not SNAPSHOTS.exists(), reason="the shared data are not here")


def empty(database: Database) -> None:
    with database.transaction() as session:
        session.exec(delete(Change).where(col(Change.origin_id).is_not(None)))
        for table in (Change, Fact, SourceCursor, Control, Cycle):
            session.exec(delete(table))


def watch_offices(runtime: Runtime) -> None:
    source = runtime.settings.source.model_copy(update={"properties": PROPERTIES, "revisions_seconds": 0.0})
    runtime.settings = runtime.settings.model_copy(update={"source": source})
    runtime.__dict__.pop("relations", None)


def poll(runtime: Runtime) -> None:
    with runtime.database.transaction() as session:
        cycle = Cycle()
        session.add(cycle)
    pull(runtime, key(cycle))


def recorded(database: Database) -> dict[Slot, tuple[tuple[str, ...], str]]:
    """The last certain value and the outcome of every fact."""
    with database.read() as session:
        return {
            (fact.qid, fact.pid): (tuple(value["id"] for value in fact.values), fact.outcome)
            for fact in session.exec(select(Fact))
        }


def told(database: Database) -> dict[Slot, list[tuple[str, ...]]]:
    """What each slot was recorded to have changed to, in order."""
    found: dict[Slot, list[tuple[str, ...]]] = defaultdict(list)
    with database.read() as session:
        for change in session.exec(select(Change).where(col(Change.origin_id).is_(None)).order_by(col(Change.id))):
            found[change.qid, change.pid].append(tuple(value["id"] for value in change.new_values))
    return found


def check(replay: Replay, database: Database, now: datetime) -> None:
    facts = recorded(database)
    for slot, values in replay.due(now).items():
        known, outcome = facts.get(slot, ((), "none"))
        if values is None:
            assert outcome == "ambiguous" or slot not in facts, (slot, now)
        else:
            assert known == values, (slot, now)


def check_changes(replay: Replay, database: Database) -> None:
    assert told(database) == replay.expected
    assert sum(map(len, replay.expected.values())) > 10


@examples(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture],
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # a history does not become clearer by being shrunk
)  # fmt: skip
@given(
    seed=st.integers(0, 10_000), page_size=st.integers(1, 60), chunk=st.integers(1, 40),
    overlap=st.integers(0, 90), lag=st.integers(0, 10),
)  # fmt: skip
def test_recorded_facts_are_the_truth_whatever_page_size_and_overlap(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch, seed: int, page_size: int, chunk: int, overlap: int, lag: int
) -> None:
    empty(runtime.database)
    watch_offices(runtime)
    wiki, opener = in_process()
    rows = snapshots(repositories=4, seed=seed)
    behind = timedelta(minutes=lag)
    # The feed alone must find what arrives within overlap and lag.
    made = edits(rows, timedelta(minutes=overlap + lag), seed)
    # The reader begins before everything, or somewhere in the middle.
    first = min(made).modified - timedelta(hours=1) if seed % 2 else made[len(made) // 3].modified
    replay = Replay(wiki, made, behind, first)
    replay.prepare(labels(rows))
    make = opener(
        runtime.relations.values(), page_size=page_size, chunk=chunk, overlap=timedelta(minutes=overlap), lag=behind
    )
    monkeypatch.setattr(runtime, "open_source", make)
    moments = [moment for moment in instants(made, 25, seed, timedelta(hours=9)) if moment > first]
    for now in [first, *moments]:
        replay.show(now)
        # Now and then everything is read twice, as after a kill.
        for _ in range(random.Random(f"{seed}{now}").choice((1, 1, 2))):
            poll(runtime)
        check(replay, runtime.database, now)
        replay.expect(now)
    assert replay.is_over
    check_changes(replay, runtime.database)
