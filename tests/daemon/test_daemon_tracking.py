"""Tracking over a living store: what the feed does not tell is found, once, and undone when it is taken back."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from living_wiki import LivingWiki, in_process
from observations import LEADER, LEADER_OF, START, Book, moment
from sqlmodel import select

from daemon.pull import pull, start_over
from daemon.record import record_page
from sources import BadAnswer, Failed, Page, SourceDown, WikidataSource
from store.tables import Change, ChangeState, Control, Cycle, Fact, SourceCursor, UnreadItem, key

if TYPE_CHECKING:
    from daemon.runtime import Runtime
    from store import Database

ZERO = {"overlap": timedelta(0), "lag": timedelta(0)}


class World:
    """Three countries, each with a head of government, and a daemon that reads them."""

    def __init__(self, runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
        self.runtime, self.patch = runtime, monkeypatch
        self.wiki, self.opener = in_process()
        self.book = Book(runtime.database)
        for number in (1, 2, 3):
            self.wiki.name(f"Q1{number}", f"Head {number}")
            self.say(number, f"Q1{number}", -24, 100 + number)
        self.configure()
        self.read_with()
        self.pull(0)

    def configure(self, **changed: Any) -> None:
        defaults = {"revisions_seconds": 0.0, "chunk": 2}
        source = self.runtime.settings.source.model_copy(update=defaults | changed)
        self.runtime.settings = self.runtime.settings.model_copy(update={"source": source})

    def settle_after(self, hours: float) -> None:
        settle = self.runtime.settings.settle.model_copy(update={"seconds": hours * 3600})
        self.runtime.settings = self.runtime.settings.model_copy(update={"settle": settle})

    def read_with(self, wrap: Any = lambda source: source, **options: Any) -> None:
        make = self.opener(self.runtime.relations.values(), **(ZERO | {"chunk": 2} | options))
        self.patch.setattr(self.runtime, "open_source", lambda **_: wrap(make()))

    def say(self, country: int, head: str | None, hours: float, revision: int) -> LivingWiki:
        said = [] if head is None else [(LEADER, head)]
        return self.wiki.put(f"Q{country}", f"Country {country}", revision, moment(hours), said)

    def pull(self, hours: float) -> int:
        """Pull from a source complete up to then; returns the cycle."""
        self.wiki.clock(moment(hours)).flush()
        with self.runtime.database.transaction() as session:
            cycle = Cycle()
            session.add(cycle)
        pull(self.runtime, key(cycle))
        return key(cycle)

    def heads(self) -> dict[str, str]:
        with self.runtime.database.read() as session:
            facts = session.exec(select(Fact).where(Fact.pid == LEADER)).all()
        return {fact.qid: ",".join(value["label"] for value in fact.values) for fact in facts}

    def fact(self, qid: str) -> Fact:
        return self.book.fact(qid, LEADER)


@pytest.fixture
def world(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(runtime, monkeypatch)


def test_the_first_load_is_no_change(world: World) -> None:
    assert world.heads() == {"Q1": "Head 1", "Q2": "Head 2", "Q3": "Head 3"}
    assert world.book.changes() == []


def test_a_deleted_item_ends_its_facts_and_settles_like_every_change(world: World) -> None:
    world.settle_after(1)
    world.wiki.delete("Q2")
    world.pull(5)
    assert world.heads()["Q2"] == ""
    assert (world.fact("Q2").outcome, world.fact("Q2").reason, world.fact("Q2").gone) == (
        "none", "deleted at the source", True,
    )  # fmt: skip
    assert world.book.standing()["Q2", LEADER] == ("Head 2", "", "settling")
    assert world.book.standing()["Q12", LEADER_OF] == ("Country 2", "", "settling")
    before = world.book.told()
    world.pull(5.5)
    assert world.book.told() == before, "found once"
    world.pull(6)
    assert world.book.standing()["Q2", LEADER][2] == "pending"


def test_an_item_that_comes_back_at_the_same_revision_brings_its_facts_back(world: World) -> None:
    world.settle_after(1)
    world.wiki.delete("Q2")
    world.pull(5)
    world.say(2, "Q12", -24, 102)
    # The comparison of revisions is not due; what settles as gone is looked at all the same.
    world.configure(revisions_seconds=3600.0)
    world.pull(5.5)
    assert world.heads()["Q2"] == "Head 2"
    assert not world.fact("Q2").gone
    assert world.book.standing() == {}, "nothing was written, nothing remains"


def test_after_a_withdrawal_an_undelete_is_a_new_change(world: World) -> None:
    world.say(2, "Q13", 1, 201)
    world.pull(2)
    world.book.write()
    world.wiki.delete("Q2")
    world.pull(5)
    world.book.write()
    latest = {(c.qid, c.pid): c.state for c in world.book.changes()}
    assert latest["Q2", LEADER] is ChangeState.WITHDRAWN
    world.say(2, "Q13", 1, 201)
    world.pull(6)
    last = [c for c in world.book.changes() if (c.qid, c.pid) == ("Q2", LEADER)][-1]
    assert (last.state, last.old_values, last.new_values[0]["label"], last.revision) == (
        ChangeState.PENDING, [], "Head 3", 201,
    )  # fmt: skip


def test_a_merged_item_says_into_which(world: World) -> None:
    world.wiki.merge("Q3", "Q1")
    world.pull(5)
    assert (world.fact("Q3").reason, world.heads()["Q3"]) == ("merged into Q1", "")
    world.say(3, "Q13", 8, 301)
    world.pull(9)
    assert (world.heads()["Q3"], world.fact("Q3").gone) == ("Head 3", False), "the merge was undone"


def test_the_last_watched_statement_gone_is_found_by_the_revision(world: World) -> None:
    world.say(1, None, 3, 203)
    world.pull(5)
    assert world.heads()["Q1"] == ""
    assert world.fact("Q1").revision == 203
    before = world.book.told()
    world.pull(6)
    assert world.book.told() == before


def test_an_item_that_arrived_too_late_for_the_feed_is_found_by_the_revision(world: World) -> None:
    world.pull(10)
    world.say(1, "Q12", 3, 203)
    world.pull(11)
    assert world.heads()["Q1"] == "Head 2"
    assert world.fact("Q1").modified_at == moment(3)


def test_it_is_not_asked_more_often_than_configured(world: World) -> None:
    world.configure(revisions_seconds=3600.0)
    world.wiki.delete("Q2")
    world.pull(5)
    assert world.heads()["Q2"] == "Head 2", "everything was read at the first load, within the hour"
    world.configure(revisions_seconds=0.0)
    world.pull(6)
    assert world.heads()["Q2"] == ""


def test_a_chunk_without_any_answer_is_not_believed_and_the_others_go_on(world: World) -> None:
    world.wiki.delete("Q1").delete("Q2")
    world.say(3, None, 3, 303)
    world.pull(5)
    assert world.heads() == {"Q1": "Head 1", "Q2": "Head 2", "Q3": ""}


def test_what_was_modified_since_the_source_was_complete_is_not_ended(world: World) -> None:
    world.wiki.delete("Q2")
    with world.runtime.database.transaction() as session:
        session.get_one(Fact, ("Q2", LEADER)).modified_at = moment(9)
    world.pull(5)
    assert world.heads()["Q2"] == "Head 2"


def test_a_values_new_name_is_found_where_an_edit_says_the_old_one(world: World) -> None:
    world.say(2, "Q13", 1, 201)
    world.pull(2)
    world.book.write()
    world.wiki.name("Q13", "Head Three").name("Q11", "Head One")
    world.pull(5)
    assert world.heads() == {"Q1": "Head 1", "Q2": "Head Three", "Q3": "Head 3"}
    latest = {(c.qid, c.pid): c for c in world.book.changes()}
    assert (latest["Q2", LEADER].state, latest["Q2", LEADER].new_values[0]["label"]) == ("pending", "Head Three")
    assert latest["Q13", LEADER_OF].subject_label == "Head Three"
    before = world.book.told()
    world.pull(6)
    assert world.book.told() == before


def test_everything_is_read_again_now_and_then(world: World) -> None:
    world.wiki.name("Q11", "Head One")
    world.pull(5)
    assert world.heads()["Q1"] == "Head 1"
    world.configure(reconcile_seconds=0.0)
    world.pull(6)
    assert world.heads()["Q1"] == "Head One"
    assert world.book.changes() == [], "an unedited fact's label is only recorded"


@pytest.mark.parametrize("key", ["revisions_seconds", "reconcile_seconds"])
def test_a_round_that_broke_off_goes_on_where_it_stood(world: World, key: str) -> None:
    world.configure(revisions_seconds=1e6)
    world.configure(**{"revisions_seconds": 1e6} | {key: 0.0})
    world.say(1, None, 3, 203)
    world.say(3, None, 3, 303)
    asked: list[list[str]] = []

    class Breaking(WikidataSource):
        broken = True

        def standing(self, qids: Any) -> Any:
            return self._asked(qids, super().standing)

        def observe(self, qids: Any, replicated: datetime) -> Any:
            if key == "reconcile_seconds":
                return self._asked(qids, lambda part: super(Breaking, self).observe(part, replicated))
            return super().observe(qids, replicated)

        def _asked(self, qids: Any, ask: Any) -> Any:
            asked.append(list(qids))
            if Breaking.broken and "Q3" in qids:
                raise SourceDown("staged")
            return ask(qids)

    def breaking(source: WikidataSource) -> WikidataSource:
        source.__class__ = Breaking
        return source

    world.read_with(breaking)
    with pytest.raises(SourceDown):
        world.pull(5)
    assert asked[0] == ["Q1", "Q2"]
    assert asked[-1] == ["Q3"]
    Breaking.broken = False
    asked.clear()
    world.pull(6)
    assert {qid for part in asked for qid in part} == {"Q3"}
    assert world.heads() == {"Q1": "", "Q2": "Head 2", "Q3": ""}


def failing(source: WikidataSource, *failed: str) -> WikidataSource:
    """A source that cannot tell about some items, though it is asked for them alone."""

    def without(page: Page) -> Page:
        told = tuple(seen for seen in page.observations if seen.qid not in failed)
        lost = {seen.qid for seen in page.observations} & set(failed)
        return Page(told, page.cursor, page.items, tuple(Failed(qid, "too large") for qid in sorted(lost)))

    real_pages, real_observe = source.pages, source.observe
    source.pages = lambda cursor: map(without, real_pages(cursor))  # type: ignore[method-assign]
    source.observe = lambda qids, now: map(without, real_observe(qids, now))  # type: ignore[method-assign]
    return source


def unread(database: Database) -> dict[str, tuple[str, int]]:
    with database.read() as session:
        return {row.qid: (row.reason, row.attempts) for row in session.exec(select(UnreadItem))}


def test_an_item_that_cannot_be_read_is_asked_for_again_ever_less_often(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = datetime(2030, 1, 1, tzinfo=START.tzinfo)
    monkeypatch.setattr("daemon.unread.utc_now", lambda: now)
    world.configure(revisions_seconds=1e6)
    database = world.runtime.database
    world.read_with(lambda source: failing(source, "Q1"))
    world.say(1, "Q12", 3, 203)
    world.say(2, "Q13", 3, 204)
    world.pull(5)
    assert world.heads() == {"Q1": "Head 1", "Q2": "Head 3", "Q3": "Head 3"}
    assert unread(database) == {"Q1": ("too large", 1)}
    world.pull(6)
    assert unread(database) == {"Q1": ("too large", 1)}, "its time has not come"
    waits = []
    for attempt in (2, 3, 4):
        with database.read() as session:
            waits.append(session.get_one(UnreadItem, "Q1").next_at - now)
        now += waits[-1]
        world.pull(6 + attempt)
        assert unread(database) == {"Q1": ("too large", attempt)}
    assert waits == sorted(set(waits)), "ever longer"
    now += timedelta(days=2)
    world.read_with()
    world.pull(20)
    assert world.heads()["Q1"] == "Head 2"
    assert unread(database) == {}


def test_one_that_is_no_more_is_given_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.read_with(lambda source: failing(source, "Q9"))
    world.wiki.put("Q9", "Ninth", 900, moment(1), [(LEADER, "Q11")])
    world.pull(5)
    assert set(unread(world.runtime.database)) == {"Q9"}
    monkeypatch.setattr("daemon.unread.utc_now", lambda: datetime(2100, 1, 1, tzinfo=START.tzinfo))
    world.wiki.delete("Q9")
    world.pull(6)
    assert unread(world.runtime.database) == {}


def test_reading_everything_again_repairs_what_was_missed_and_changes_nothing_else(world: World) -> None:
    world.configure(revisions_seconds=1e6)
    world.pull(10)
    world.say(1, "Q12", 3, 203)  # behind the cursor
    world.pull(11)
    assert world.heads()["Q1"] == "Head 1"
    start_over(world.runtime)
    with world.runtime.database.read() as session:
        assert session.get(SourceCursor, world.runtime.source_name) is None
    world.pull(12)
    assert world.heads()["Q1"] == "Head 2"
    assert [c.qid for c in world.book.changes() if c.pid == LEADER] == ["Q1"]
    with world.runtime.database.read() as session:
        assert session.get(Control, "load") is None
        assert session.exec(select(SourceCursor)).one().modified_at == moment(12)


def test_a_load_that_broke_off_goes_on_and_a_cursor_is_not_too_old_for_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[bool] = []
    real = world.runtime.open_source

    def opening(*, forgetful: bool = True) -> WikidataSource:
        opened.append(forgetful)
        return real()

    monkeypatch.setattr(world.runtime, "open_source", opening)
    start_over(world.runtime)
    with monkeypatch.context() as patch:
        patch.setattr("daemon.pull.look_after", _staged)
        patch.setattr("daemon.pull._end_load", _staged)
        with pytest.raises(OSError, match="staged"):
            world.pull(5)
    world.pull(6)
    world.pull(7)
    assert opened == [False, False, True]


def _staged(*_: Any) -> None:
    raise OSError("staged")


def test_a_replay_of_all_that_was_read_changes_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    pages: list[tuple[Page, Any]] = []

    def keeping(session: Any, page: Page, reading: Any) -> int:
        pages.append((page, reading))
        return record_page(session, page, reading)

    monkeypatch.setattr("daemon.pull.record_page", keeping)
    monkeypatch.setattr("daemon.tracking.record_page", keeping)
    world.say(1, "Q12", 1, 201)
    world.pull(2)
    world.wiki.delete("Q2")
    world.pull(3)
    world.say(2, "Q12", -24, 102)
    world.say(3, None, 3, 303)
    world.pull(4)
    before, facts = world.book.told(), world.heads()
    for page, reading in pages:
        with world.runtime.database.transaction() as session:
            assert record_page(session, page, reading) == 0
    assert (world.book.told(), world.heads()) == (before, facts)


def test_a_source_that_breaks_while_tracking_leaves_the_cursor_where_the_feed_was(world: World) -> None:
    def breaking(source: WikidataSource) -> WikidataSource:
        source.standing = _down  # type: ignore[method-assign]
        return source

    world.read_with(breaking)
    world.say(1, "Q12", 1, 201)
    with pytest.raises(SourceDown):
        world.pull(5)
    assert world.heads()["Q1"] == "Head 2"
    with world.runtime.database.read() as session:
        assert {change.state for change in session.exec(select(Change))} == {ChangeState.SETTLING}, "no pull has ended"
    world.read_with()
    world.pull(6)
    assert world.book.standing()["Q1", LEADER][2] == "pending"


def _down(_qids: Any) -> Any:
    raise SourceDown("staged")


def test_bad_answers_are_errors_of_the_feed(world: World) -> None:
    def bad(source: WikidataSource) -> WikidataSource:
        def pages(_cursor: Any) -> Any:
            raise BadAnswer("staged")

        source.pages = pages  # type: ignore[method-assign]
        return source

    world.read_with(bad)
    with pytest.raises(BadAnswer):
        world.pull(5)
    with world.runtime.database.read() as session:
        assert session.exec(select(SourceCursor)).one().modified_at == moment(0)
