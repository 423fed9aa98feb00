"""Rate breaker: a wave is held whole until an operator has looked or it is taken back; the others go on."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from observations import LEADER, TWIN, Book, seen
from sqlmodel import select

from daemon import breaker, control
from daemon.metrics import Metrics
from store.tables import Change, ChangeState

if TYPE_CHECKING:
    from daemon.runtime import Runtime

COUNTRIES = [f"Q{number}" for number in range(1, 41)]


@pytest.fixture
def book(runtime: Runtime) -> Book:
    made = Book(runtime.database)
    made.read(*(seen(0, qid, LEADER, "Q100") for qid in COUNTRIES))
    made.read(*(seen(0, qid, TWIN, "Q500") for qid in COUNTRIES))
    configure(runtime)
    return made


def configure(runtime: Runtime, **changed: Any) -> None:
    wanted = {"property_share": 0.25, "overall_share": 0.25, "minimum": 5} | changed
    section = runtime.settings.breaker.model_copy(update=wanted)
    runtime.settings = runtime.settings.model_copy(update={"breaker": section})


def rename(book: Book, count: int, hours: float, value: str = "Q200", pid: str = LEADER) -> None:
    book.read(*(seen(hours, qid, pid, value) for qid in COUNTRIES[:count]))


def watch(runtime: Runtime) -> list[str]:
    with runtime.database.transaction() as session:
        return [latch.property for latch in breaker.watch(session, runtime.settings)[0]]


def test_a_wave_trips_the_breaker_of_its_property(book: Book, runtime: Runtime) -> None:
    rename(book, 10, 1)
    assert watch(runtime) == [], "a quarter, and no more"
    rename(book, 11, 2)
    assert watch(runtime) == [LEADER]
    with runtime.database.read() as session:
        (latch,) = breaker.latches(session)
    assert (latch.changes, latch.facts) == (11, 40)
    assert "11 of 40 P6 facts" in str(latch)
    assert "factsyncd resume" in str(latch)


def test_much_of_everything_trips_the_one_of_all(book: Book, runtime: Runtime) -> None:
    configure(runtime, property_share=0.9)
    rename(book, 11, 1)
    rename(book, 11, 1, "Q600", TWIN)
    assert watch(runtime) == ["all"]


def test_a_small_state_may_change_as_it_likes(book: Book, runtime: Runtime) -> None:
    configure(runtime, minimum=12)
    rename(book, 11, 1)
    assert watch(runtime) == []


def test_an_embedded_source_has_no_breaker_unless_one_is_set(book: Book, runtime: Runtime) -> None:
    configure(runtime, property_share=None, overall_share=None)
    rename(book, 40, 1)
    assert runtime.settings.source.kind == "embedded"
    assert watch(runtime) == []
    endpoint = runtime.settings.source.model_copy(update={"kind": "endpoint"})
    runtime.settings = runtime.settings.model_copy(update={"source": endpoint})
    assert watch(runtime) == [LEADER, "all"]


def test_one_slot_that_changes_often_counts_once(book: Book, runtime: Runtime) -> None:
    for hour in range(1, 30):
        book.read(seen(hour, "Q1", LEADER, f"Q{200 + hour}"))
    assert watch(runtime) == []


def test_it_stays_tripped_over_time_and_is_reset_by_the_operator(
    book: Book, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename(book, 20, 1)
    assert watch(runtime) == [LEADER]
    now = breaker.utc_now()
    monkeypatch.setattr(breaker, "utc_now", lambda: now + timedelta(days=9))
    assert watch(runtime) == [LEADER], "its changes have left the window, but nobody has looked"
    control.resume(runtime)
    assert watch(runtime) == []
    with runtime.database.read() as session:
        assert breaker.latches(session) == []


def test_what_was_acknowledged_counts_no_more(book: Book, runtime: Runtime) -> None:
    rename(book, 20, 1)
    assert watch(runtime) == [LEADER]
    control.resume(runtime)
    book.read(*(seen(2, qid, LEADER, "Q300") for qid in COUNTRIES[20:29]))
    assert watch(runtime) == []
    book.read(*(seen(3, qid, LEADER, "Q300") for qid in COUNTRIES[29:33]))
    assert watch(runtime) == [LEADER], "a new wave trips it again"


def test_it_is_reset_by_itself_when_the_wave_is_taken_back(book: Book, runtime: Runtime) -> None:
    rename(book, 20, 1)
    assert watch(runtime) == [LEADER]
    rename(book, 5, 2, "Q100")
    assert watch(runtime) == [LEADER], "15 are left"
    rename(book, 12, 3, "Q100")
    assert watch(runtime) == []


def test_what_was_counted_before_the_window_does_not_trip(
    book: Book, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename(book, 20, 1)
    now = breaker.utc_now()
    monkeypatch.setattr(breaker, "utc_now", lambda: now + timedelta(days=2))
    assert watch(runtime) == []


def test_both_ends_of_a_fact_are_one_change(book: Book, runtime: Runtime) -> None:
    book.read(*(seen(1, qid, LEADER, f"Q{200 + number}") for number, qid in enumerate(COUNTRIES[:9])))
    with runtime.database.read() as session:
        assert len(session.exec(select(Change).where(Change.state == ChangeState.SETTLING)).all()) > 11
    assert watch(runtime) == []


def test_the_metric_names_the_property(book: Book, runtime: Runtime) -> None:
    rename(book, 20, 1)
    watch(runtime)
    metrics = Metrics("1")
    metrics.watch(runtime.database)
    values = {
        property_id: metrics.registry.get_sample_value("factsyncd_breaker_tripped", {"property": property_id})
        for property_id in ("all", LEADER, TWIN)
    }
    assert values == {"all": 0, LEADER: 1, TWIN: 0}
