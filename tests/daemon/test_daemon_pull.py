"""Pull: every difference of a slot's value becomes one change, however often and in whatever order pages come."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from small_world import CHANGES, COUNTRIES, turtle
from sqlmodel import col, delete, select

from daemon.pull import pull
from daemon.record import Reading, record_page
from sources import Cursor, Observation, Outcome, Page, SnapshotUnreadable, Value, ValueKind, load_catalogue
from store.changes import OPEN
from store.tables import Change, ChangeState, Control, Cycle, Fact, Phase, SourceCursor

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from daemon.runtime import Runtime
    from store import Database

START = datetime(2022, 1, 1, tzinfo=UTC)
NAMES = {"Q1": "Bujar", "Q2": "Ilir", "Q3": "Bajram"}
RELATIONS = load_catalogue()


def seen(
    revision: int, *values: str, outcome: Outcome | None = None, qid: str = "Q222", label: str = "Albania"
) -> Observation:
    """What P6 of an item said at a revision; revision 0 is at the baseline, later ones come a day apart."""
    told = outcome or {0: Outcome.NONE, 1: Outcome.VALUE}.get(len(values), Outcome.SEVERAL)
    return Observation(
        qid, label, "P6", told, tuple(Value(ValueKind.ITEM, v, NAMES[v]) for v in values), told.value,
        100 + revision, START + timedelta(days=revision), f"{qid}-{revision}",
    )  # fmt: skip


def page(*observations: Observation) -> Page:
    last = observations[-1]
    return Page(observations, Cursor(last.modified, last.revision), len(observations))


@pytest.fixture
def cycle_id(database: Database) -> int:
    return new_cycle(database)


def new_cycle(database: Database) -> int:
    with database.transaction() as session:
        cycle = Cycle()
        session.add(cycle)
    assert cycle.id is not None
    return cycle.id


def reading(cycle_id: int) -> Reading:
    return Reading(cycle_id, START + timedelta(days=100), START, RELATIONS)


def record(database: Database, cycle_id: int, *observations: Observation) -> int:
    with database.transaction() as session:
        return record_page(session, page(*observations), reading(cycle_id))


def changes(database: Database) -> list[Change]:
    """Those that were read; what they expand to has tests of its own."""
    with database.read() as session:
        return list(session.exec(select(Change).where(col(Change.origin_id).is_(None)).order_by(col(Change.id))))


def fact(database: Database, qid: str = "Q222") -> Fact:
    with database.read() as session:
        return session.exec(select(Fact).where(Fact.qid == qid)).one()


def ids(values: Sequence[dict[str, str]]) -> list[str]:
    return [value["id"] for value in values]


def test_a_fact_of_the_baseline_is_recorded_and_is_no_change(database: Database, cycle_id: int) -> None:
    assert record(database, cycle_id, seen(0, "Q1")) == 0
    assert changes(database) == []
    recorded = fact(database)
    assert ids(recorded.values) == ["Q1"]
    assert (recorded.subject_label, recorded.revision, recorded.statement) == ("Albania", 100, "Q222-0")
    assert recorded.modified_at == START


def test_a_later_value_is_a_change_that_names_old_and_new(database: Database, cycle_id: int) -> None:
    record(database, cycle_id, seen(0, "Q1"))
    assert record(database, cycle_id, seen(1, "Q2")) == 1
    (change,) = changes(database)
    assert (ids(change.old_values), ids(change.new_values)) == (["Q1"], ["Q2"])
    assert change.new_values[0]["label"] == "Ilir"
    assert (change.state, change.cycle_id, change.revision) == (ChangeState.SETTLING, cycle_id, 101)
    assert ids(fact(database).values) == ["Q2"]


def test_a_fact_that_begins_after_the_baseline_is_a_change_from_nothing(database: Database, cycle_id: int) -> None:
    assert record(database, cycle_id, seen(1, "Q2")) == 1
    (change,) = changes(database)
    assert (change.old_values, ids(change.new_values)) == ([], ["Q2"])


def test_a_slot_that_never_had_a_value_is_not_tracked(database: Database, cycle_id: int) -> None:
    record(database, cycle_id, seen(1), seen(2, outcome=Outcome.AMBIGUOUS, qid="Q41"))
    with database.read() as session:
        assert session.exec(select(Fact)).all() == []


def test_the_same_page_twice_changes_nothing(database: Database, cycle_id: int) -> None:
    record(database, cycle_id, seen(0, "Q1"))
    assert record(database, cycle_id, seen(1, "Q2")) == 1
    before = (fact(database).model_dump(), [change.model_dump() for change in changes(database)])
    assert record(database, cycle_id, seen(1, "Q2")) == 0
    assert record(database, cycle_id, seen(0, "Q1")) == 0, "an older revision came late"
    assert (fact(database).model_dump(), [change.model_dump() for change in changes(database)]) == before


def test_a_new_revision_with_the_same_value_is_no_change(database: Database, cycle_id: int) -> None:
    record(database, cycle_id, seen(0, "Q1"))
    assert record(database, cycle_id, seen(3, "Q1", label="Republic of Albania")) == 0
    assert (fact(database).revision, fact(database).subject_label) == (103, "Republic of Albania")


def test_a_later_change_supersedes_the_one_that_waits(database: Database, cycle_id: int) -> None:
    record(database, cycle_id, seen(0, "Q1"), seen(1, "Q2"), seen(2, "Q3"))
    first, second = changes(database)
    assert (first.state, second.state) == (ChangeState.SUPERSEDED, ChangeState.SETTLING)
    assert (ids(second.old_values), ids(second.new_values)) == (["Q1"], ["Q3"]), "nobody wrote Q2"


@pytest.mark.parametrize("state", [s for s in ChangeState if s not in OPEN])
def test_only_a_waiting_change_is_superseded(database: Database, cycle_id: int, state: ChangeState) -> None:
    record(database, cycle_id, seen(0, "Q1"), seen(1, "Q2"))
    with database.transaction() as session:
        session.exec(select(Change).where(Change.qid == "Q222")).one().state = state
    record(database, cycle_id, seen(2, "Q3"))
    assert [change.state for change in changes(database)] == [state, ChangeState.SETTLING]
    assert ids(changes(database)[1].old_values) == ["Q2"]


def test_an_ambiguous_moment_keeps_the_last_certain_value(database: Database, cycle_id: int) -> None:
    record(database, cycle_id, seen(0, "Q1"))
    assert record(database, cycle_id, seen(1, outcome=Outcome.AMBIGUOUS)) == 0
    kept = fact(database)
    assert (ids(kept.values), kept.statement) == (["Q1"], "Q222-0")
    assert (kept.outcome, kept.revision) == ("ambiguous", 101)
    assert record(database, cycle_id, seen(2, "Q1")) == 0, "the value came back as it was"
    assert record(database, cycle_id, seen(3, "Q2")) == 1
    assert ids(changes(database)[0].old_values) == ["Q1"]


def test_an_ambiguous_moment_keeps_the_label_too(database: Database, cycle_id: int) -> None:
    record(database, cycle_id, seen(0, "Q1"))
    record(database, cycle_id, seen(1, outcome=Outcome.AMBIGUOUS, label="<script>"))
    assert fact(database).subject_label == "Albania"


def test_a_value_that_ends_is_a_change_to_nothing(database: Database, cycle_id: int) -> None:
    record(database, cycle_id, seen(0, "Q1"))
    assert record(database, cycle_id, seen(1)) == 1
    assert changes(database)[0].new_values == []
    assert fact(database).subject_label == "Albania"


# No AMBIGUOUS first: such a slot is not tracked, which has its own test.
MOMENTS = st.lists(st.sampled_from([("Q1",), ("Q2",), ("Q3",), ("Q1", "Q2"), (), None]), min_size=1, max_size=6)


def told(recorded: Sequence[Change]) -> list[tuple[list[str], list[str], str]]:
    return [(ids(change.old_values), ids(change.new_values), change.state.value) for change in recorded]


def merged(values: Sequence[list[str]]) -> list[tuple[list[str], list[str], str]]:
    """The changes that a history of values makes while none of them is written."""
    made: list[tuple[list[str], list[str], str]] = []
    for before, after in zip(values, values[1:], strict=False):
        if before == after:
            continue
        if made and made[-1][2] == "settling":
            before = made[-1][0]
            made[-1] = (*made[-1][:2], "superseded")
        made.append((before, after, "reverted" if before == after else "settling"))
    return made


@examples(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(moments=MOMENTS, data=st.data())
def test_repeated_and_late_pages_end_with_the_newest_value_and_one_change_per_difference(
    database: Database, moments: list[tuple[str, ...] | None], data: st.DataObject
) -> None:
    history = [seen(0, "Q1")] + [
        seen(i, outcome=Outcome.AMBIGUOUS) if values is None else seen(i, *values)
        for i, values in enumerate(moments, 1)
    ]
    # In order, with any earlier page again after any page.
    order: list[Observation] = []
    for i, observation in enumerate(history):
        again = data.draw(st.lists(st.sampled_from(history[: i + 1]), max_size=2))
        order += [observation, *again]
    with database.transaction() as session:
        for table in (Change, Fact):
            session.exec(delete(table))
    cycle_id = new_cycle(database)
    for observation in order:
        record(database, cycle_id, observation)

    certain = [o for o in history if o.outcome is not Outcome.AMBIGUOUS]
    values = [[value.id for value in o.values] for o in certain]
    assert told(changes(database)) == merged(values)
    assert ids(fact(database).values) == values[-1]
    assert (fact(database).revision, fact(database).outcome) == (history[-1].revision, history[-1].outcome.value)


@examples(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(moments=MOMENTS, data=st.data())
def test_skipped_and_late_pages_end_with_the_newest_value(
    database: Database, moments: list[tuple[str, ...] | None], data: st.DataObject
) -> None:
    """Any order: the fact is the newest one, and the changes lead from the first value recorded to it."""
    history = [seen(0, "Q1")] + [seen(i, *(values or ())) for i, values in enumerate(moments, 1)]
    order = data.draw(st.permutations(history))
    with database.transaction() as session:
        for table in (Change, Fact):
            session.exec(delete(table))
    cycle_id = new_cycle(database)
    for observation in order:
        record(database, cycle_id, observation)
    # What was newer than all before it counts; the rest came late.
    counted: list[Observation] = []
    for observation in order:
        first = not counted
        if (not first or observation.values) and (first or observation.revision > counted[-1].revision):
            counted.append(observation)
    assert fact(database).revision == counted[-1].revision
    assert ids(fact(database).values) == [value.id for value in counted[-1].values]
    values = [[value.id for value in o.values] for o in counted]
    if counted[0].modified > START:
        values.insert(0, [])
    assert told(changes(database)) == merged(values)


# End to end, over two snapshots.


def cursor(database: Database, runtime: Runtime) -> SourceCursor | None:
    with database.read() as session:
        return session.get(SourceCursor, runtime.source_name)


def test_pull_reads_two_instants(runtime: Runtime, database: Database, snapshot: Path) -> None:
    first = new_cycle(database)
    pull(runtime, first)
    assert changes(database) == []
    with database.read() as session:
        assert len(session.exec(select(Fact)).all()) == 2 * len(COUNTRIES)
        assert session.exec(select(Cycle)).one().phase is Phase.DIFF
    at_first = cursor(database, runtime)
    assert at_first is not None

    snapshot.write_text(turtle(after=True), "utf-8")
    second = new_cycle(database)
    pull(runtime, second)
    found = changes(database)
    assert {change.qid: change.new_values[0]["label"] for change in found} == CHANGES
    assert {change.qid: change.old_values[0]["label"] for change in found} == {
        qid: COUNTRIES[qid][2] for qid in CHANGES
    }
    assert {change.cycle_id for change in found} == {second}
    with database.read() as session:
        assert session.exec(select(Cycle.counts).where(Cycle.id == second)).one()["changes"] == 4
    at_second = cursor(database, runtime)
    assert at_second is not None
    assert (at_second.modified_at, at_second.revision) > (at_first.modified_at, at_first.revision)

    pull(runtime, new_cycle(database))
    assert len(changes(database)) == 4


def test_pull_in_small_pages_finds_the_same(runtime: Runtime, database: Database, snapshot: Path) -> None:
    small = runtime.settings.source.model_copy(update={"page_size": 1})
    runtime.settings = runtime.settings.model_copy(update={"source": small})
    pull(runtime, new_cycle(database))
    snapshot.write_text(turtle(after=True), "utf-8")
    pull(runtime, new_cycle(database))
    assert {change.qid for change in changes(database)} == set(CHANGES)


def test_first_load_may_be_edited(runtime: Runtime, database: Database) -> None:
    edited = runtime.settings.source.model_copy(update={"first_load": "edit"})
    runtime.settings = runtime.settings.model_copy(update={"source": edited})
    pull(runtime, new_cycle(database))
    assert len(changes(database)) == 2 * len(COUNTRIES)


def test_the_baseline_is_fixed_before_the_first_page(
    runtime: Runtime, database: Database, snapshot: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A first load that failed half-way and goes on later must not make changes of old facts, nor lose new ones."""
    small = runtime.settings.source.model_copy(update={"page_size": 1})
    runtime.settings = runtime.settings.model_copy(update={"source": small})
    real, calls = record_page, []

    def failing(*arguments: object) -> int:
        calls.append(1)
        if len(calls) == 3:
            raise OSError("staged")
        return real(*arguments)  # type: ignore[arg-type]

    cycle = new_cycle(database)
    with monkeypatch.context() as patch:
        patch.setattr("daemon.pull.record_page", failing)
        with pytest.raises(OSError, match="staged"):
            pull(runtime, cycle)
    with database.read() as session:
        kept = session.exec(select(Fact)).all()
        baseline = session.get(Control, "baseline")
    assert 0 < len(kept) < 2 * len(COUNTRIES)
    snapshot.write_text(turtle(after=True), "utf-8")
    pull(runtime, cycle)
    with database.read() as session:
        assert len(session.exec(select(Fact)).all()) == 2 * len(COUNTRIES)
        assert session.get(Control, "baseline") == baseline
    # Those modified after the baseline are changes, whether their first value had been seen or not.
    assert {change.qid for change in changes(database) if change.pid == "P6"} == set(CHANGES)


def test_a_damaged_snapshot_leaves_everything_as_it_was(runtime: Runtime, database: Database, snapshot: Path) -> None:
    pull(runtime, new_cycle(database))
    before = cursor(database, runtime)
    snapshot.write_text(turtle(after=True)[:-40], "utf-8")
    with pytest.raises(SnapshotUnreadable):
        pull(runtime, new_cycle(database))
    assert cursor(database, runtime) == before
    assert changes(database) == []
