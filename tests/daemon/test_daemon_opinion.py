"""Second opinion: what it is against settles anew, what it cannot be asked about waits, the rest is batched."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from observations import LEADER, LEADER_OF, Book, seen
from sqlmodel import select

from daemon.batch import batch
from daemon.errors import TooEarly
from daemon.opinion import second_opinions
from daemon.patience import asking
from sources import Observation, SourceDown, Throttled
from store.tables import Change, Cycle, Version, VersionState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from daemon.runtime import Runtime


class Api:
    """An Action API that says what it is told to."""

    def __init__(self) -> None:
        self.says: list[Observation] = []
        self.error: Exception | None = None
        self.asked: list[list[str]] = []

    def observe(self, qids: Sequence[str], _now: Any) -> list[Observation]:
        self.asked.append(list(qids))
        if self.error is not None:
            raise self.error
        return [one for one in self.says if one.qid in qids]


@pytest.fixture
def api(runtime: Runtime, monkeypatch: pytest.MonkeyPatch, all_writable: None) -> Api:
    made = Api()
    monkeypatch.setattr(runtime, "open_second_opinion", lambda _address: made)
    configure(runtime, "https://www.wikidata.org/w/api.php")
    return made


def configure(runtime: Runtime, address: str | None) -> None:
    source = runtime.settings.source.model_copy(update={"second_opinion": address, "user_agent": "a/1"})
    runtime.settings = runtime.settings.model_copy(update={"source": source})


@pytest.fixture
def book(runtime: Runtime) -> Book:
    """A value displaced, a value ended, and a new one."""
    made = Book(runtime.database)
    with runtime.database.transaction() as session:
        session.add(Version(id=0, state=VersionState.PROMOTED, base_digest="b", settings_digest="s"))
    made.read(seen(0, "Q1", LEADER, "Q11"), seen(0, "Q2", LEADER, "Q12"))
    made.read(seen(1, "Q1", LEADER, "Q21"), seen(1, "Q2", LEADER), seen(1, "Q3", LEADER, "Q23"))
    made.settle(9)
    return made


def states(book: Book) -> dict[str, str]:
    return {qid: state for (qid, pid), (_, _, state) in book.standing().items() if pid == LEADER}


def test_where_it_agrees_everything_is_batched(book: Book, api: Api, runtime: Runtime) -> None:
    api.says = [seen(2, "Q1", LEADER, "Q21=Under another name")]
    batch(runtime, book.cycle_id)
    assert api.asked == [["Q1", "Q2"]], "only what displaces or withdraws"
    assert states(book) == {"Q1": "batched", "Q2": "batched", "Q3": "batched"}


def test_what_it_is_against_settles_anew_at_both_ends(book: Book, api: Api, runtime: Runtime) -> None:
    api.says = [seen(2, "Q1", LEADER, "Q11"), seen(2, "Q2", LEADER, "Q12")]
    batch(runtime, book.cycle_id)
    assert states(book) == {"Q1": "settling", "Q2": "settling", "Q3": "batched"}
    assert book.standing()["Q21", LEADER_OF][2] == "settling"
    with runtime.database.read() as session:
        change = session.exec(select(Change).where(Change.qid == "Q1")).one()
    assert (change.polls, change.reason) == (0, "the second opinion says Q11, not Q21")
    book.settle(10)
    assert states(book)["Q1"] == "pending", "and is asked about again"


def test_an_api_out_of_reach_holds_only_what_needs_it(book: Book, api: Api, runtime: Runtime) -> None:
    api.error = SourceDown("staged")
    batch(runtime, book.cycle_id)
    assert states(book) == {"Q1": "pending", "Q2": "pending", "Q3": "batched"}
    assert runtime.metrics.registry.get_sample_value("factsyncd_second_opinions_total", {"answer": "unheard"}) == 2


def test_where_nothing_else_was_to_do_the_cycle_says_what_waits(book: Book, api: Api, runtime: Runtime) -> None:
    with runtime.database.transaction() as session:
        for change in session.exec(select(Change).where(Change.revision == 160, Change.new_values != [])).all():
            if "Q3" in (change.qid, *(value["id"] for value in change.new_values)):
                change.state = "held"
    api.error = SourceDown("staged")
    batch(runtime, book.cycle_id)
    with runtime.database.read() as session:
        cycle = session.exec(select(Cycle)).one()
    assert cycle.outcome == "nothing"
    assert "wait for the second opinion" in cycle.detail


def test_it_too_is_left_alone_when_it_says_so(book: Book, api: Api, runtime: Runtime) -> None:
    api.error = Throttled("wait", 100.0)
    assert second_opinions(runtime).unheard
    assert second_opinions(runtime).unheard
    assert len(api.asked) == 1
    with pytest.raises(TooEarly), asking(runtime, runtime.settings.source.second_opinion or ""):
        pass


def test_without_one_configured_nothing_is_asked(book: Book, api: Api, runtime: Runtime) -> None:
    configure(runtime, None)
    batch(runtime, book.cycle_id)
    assert api.asked == []
    assert set(states(book).values()) == {"batched"}
