"""Record: changes of a slot that was never written merge; what is taken back leaves nothing to do, at both ends."""

from __future__ import annotations

from dataclasses import replace

import pytest
from observations import LEADER, LEADER_OF, START, TWIN, Book, faulty, seen
from sqlmodel import col, select

from daemon.control import release
from daemon.runtime import Runtime
from sources import Outcome
from store import Database
from store.tables import Change, ChangeState, Fact, Quarantine, Version, VersionState

SLOT = ("Q1", LEADER)


@pytest.fixture
def book(database: Database) -> Book:
    return Book(database)


def kept_out(book: Book) -> list[tuple[str, str, str]]:
    with book.database.read() as session:
        rows = session.exec(select(Quarantine).where(col(Quarantine.released_at).is_(None)))
        return [(row.qid, row.pid, row.reason) for row in rows]


def test_what_is_taken_back_before_it_was_written_leaves_nothing_to_do(book: Book) -> None:
    book.read(seen(0, *SLOT, "Q2"))
    book.read(seen(1, *SLOT, "Q3"))
    assert book.standing() == {
        SLOT: ("L2", "L3", "settling"), ("Q2", LEADER_OF): ("L1", "", "settling"),
        ("Q3", LEADER_OF): ("", "L1", "settling"),
    }  # fmt: skip
    book.read(seen(2, *SLOT, "Q2"))
    assert book.standing() == {}
    assert {change.state.value for change in book.changes()} == {"superseded", "reverted"}
    assert "not written" in book.changes()[-1].reason
    assert [value["id"] for value in book.fact(*SLOT).values] == ["Q2"]


def test_a_second_change_leads_from_what_was_settled_and_takes_the_other_ends_along(book: Book) -> None:
    book.read(seen(0, *SLOT, "Q2"))
    book.read(seen(1, *SLOT, "Q3"))
    book.read(seen(5, *SLOT, "Q4"))
    assert book.standing() == {
        SLOT: ("L2", "L4", "settling"), ("Q2", LEADER_OF): ("L1", "", "settling"),
        ("Q4", LEADER_OF): ("", "L1", "settling"),
    }  # fmt: skip
    newest = [change for change in book.changes() if change.state is ChangeState.SETTLING]
    assert len({change.group for change in newest}) == 1, "the end of Q2 must not settle before the value of Q1"
    assert len({change.modified_at for change in newest}) == 1


def test_a_settled_change_that_was_not_written_merges_too(book: Book) -> None:
    book.read(seen(0, *SLOT, "Q2"))
    book.read(seen(1, *SLOT, "Q3"))
    book.settle(9)
    assert book.standing()[SLOT] == ("L2", "L3", "pending")
    book.read(seen(10, *SLOT, "Q4"))
    assert book.standing()[SLOT] == ("L2", "L4", "settling")
    book.read(seen(11, *SLOT, "Q2"))
    assert book.standing() == {}


def test_a_live_edit_that_says_something_else_is_not_forgotten(book: Book) -> None:
    """Q3 is written. Q4 comes and goes back to Q3: nothing to do. Back to Q2: to be written again."""
    book.read(seen(0, *SLOT, "Q2"))
    book.read(seen(1, *SLOT, "Q3"))
    book.settle(9)
    book.write()
    book.read(seen(10, *SLOT, "Q4"))
    book.read(seen(11, *SLOT, "Q3"))
    assert book.standing()[SLOT] == ("L2", "L3", "live")
    book.read(seen(12, *SLOT, "Q2"))
    with book.database.read() as session:
        newest = session.exec(select(Change).where(Change.qid == "Q1").order_by(col(Change.id).desc())).first()
    assert newest is not None
    assert (newest.state, newest.old_values[0]["id"], newest.new_values[0]["id"]) == ("settling", "Q3", "Q2")


def test_what_comes_back_to_a_value_that_a_rollback_has_left_behind_is_asked_of_the_model(book: Book) -> None:
    book.read(seen(0, *SLOT, "Q2"))
    for hours, value in ((1, "Q3"), (20, "Q4")):
        book.read(seen(hours, *SLOT, value))
        book.settle(hours + 9)
        book.write()
    with book.database.transaction() as session:
        # Rolled back to the base: no edit is live, the newest change is kept out.
        for change in session.exec(select(Change)).all():
            change.state = ChangeState.SUPERSEDED
        session.exec(
            select(Change).where(Change.revision == 100 + 20 * 60, Change.qid == "Q1")
        ).one().state = ChangeState.QUARANTINED
        session.exec(select(Version).where(Version.state == "promoted")).one().state = VersionState.RETIRED
        session.flush()
        session.add(Version(id=9, state=VersionState.PROMOTED, base_digest="b", settings_digest="s"))
    book.read(seen(40, *SLOT, "Q3"))
    assert book.standing()[SLOT] == ("L3", "L3", "settling"), "the base may still say Q2"


def test_while_a_candidate_says_otherwise_a_change_back_stays_open(book: Book) -> None:
    book.read(seen(0, *SLOT, "Q2"))
    book.read(seen(1, *SLOT, "Q3"))
    with book.database.transaction() as session:
        for change in session.exec(select(Change)).all():
            change.state = ChangeState.BATCHED
    book.read(seen(2, *SLOT, "Q4"))
    book.read(seen(3, *SLOT, "Q3"))
    with book.database.read() as session:
        newest = session.exec(select(Change).where(Change.qid == "Q1").order_by(col(Change.id).desc())).first()
    assert newest is not None
    assert newest.state is ChangeState.SETTLING


# Labels that cannot stand in a prompt.


def test_a_change_with_a_faulty_label_is_kept_out_by_id(book: Book) -> None:
    book.read(seen(0, *SLOT, "Q2"))
    assert book.read(faulty(1, *SLOT, "Q3")) == 1
    assert book.standing() == {SLOT: ("L2", "Q3", "quarantined")}
    assert kept_out(book) == [(*SLOT, "label with a brace")]
    fact = book.fact(*SLOT)
    assert ([value["label"] for value in fact.values], fact.outcome) == (["L2"], "ambiguous"), "the last certain value"
    assert book.read(faulty(1, *SLOT, "Q3"), at=9) == 0, "the same again"
    assert book.read(faulty(2, *SLOT, "Q3")) == 0, "another revision that says the same"
    assert len(kept_out(book)) == 1


def test_a_good_reading_supersedes_it(book: Book) -> None:
    book.read(seen(0, *SLOT, "Q2"))
    book.read(faulty(1, *SLOT, "Q3"))
    book.read(seen(2, *SLOT, "Q3=Ilir"))
    assert book.standing() == {
        SLOT: ("L2", "Ilir", "settling"), ("Q2", LEADER_OF): ("L1", "", "settling"),
        ("Q3", LEADER_OF): ("", "L1", "settling"),
    }  # fmt: skip
    assert kept_out(book) == []


def test_back_to_the_last_good_value_nothing_remains(book: Book) -> None:
    book.read(seen(0, *SLOT, "Q2"))
    book.read(faulty(1, *SLOT, "Q3"))
    book.read(seen(2, *SLOT, "Q2"))
    assert book.standing() == {}
    assert kept_out(book) == []


@pytest.mark.parametrize("then", ["Q2", "Q3", "Q4"])
def test_a_faulty_moment_in_the_middle_keeps_both_ends_together(book: Book, then: str) -> None:
    book.read(seen(0, *SLOT, "Q2"))
    book.read(seen(1, *SLOT, "Q3"))
    book.read(faulty(2, *SLOT, "Q4"))
    assert {state for _, _, state in book.standing().values()} == {"quarantined"}
    book.read(seen(3, *SLOT, then))
    if then == "Q2":
        assert book.standing() == {}
    else:
        name = f"L{then[1:]}"
        assert book.standing() == {
            SLOT: ("L2", name, "settling"), ("Q2", LEADER_OF): ("L1", "", "settling"),
            (then, LEADER_OF): ("", "L1", "settling"),
        }  # fmt: skip
    assert kept_out(book) == []


def test_the_former_value_with_a_faulty_label_and_then_a_good_one(book: Book) -> None:
    book.read(seen(0, *SLOT, "Q2"))
    book.read(seen(1, *SLOT, "Q3"))
    book.read(faulty(2, *SLOT, "Q2"))
    book.read(seen(3, *SLOT, "Q2"))
    assert book.standing() == {}


def test_a_faulty_label_of_the_present_value_makes_no_change(book: Book) -> None:
    book.read(seen(0, *SLOT, "Q2"))
    assert book.read(faulty(1, *SLOT, "Q2", subject=True)) == 0
    assert book.fact(*SLOT).subject_label == "L1"
    assert book.read(seen(2, *SLOT, "Q2")) == 0
    assert book.changes() == []


def test_a_baseline_fact_that_gets_its_label_later_is_recorded_only(book: Book) -> None:
    book.read(faulty(0, *SLOT, "Q2"))
    assert book.fact(*SLOT).values == [], "values always have labels"
    book.read(seen(5, *SLOT, "Q2=Ilir"))
    assert [value["label"] for value in book.fact(*SLOT).values] == ["Ilir"]
    assert book.changes() == []
    book.read(faulty(0, "Q9", LEADER, "Q2"))
    book.read(seen(5, "Q9", LEADER, "Q3"))
    assert book.standing()["Q9", LEADER] == ("", "L3", "settling"), "another value is a change"


def test_released_without_a_label_it_is_kept_out_again(book: Book, runtime: Runtime) -> None:
    book.read(seen(0, *SLOT, "Q2"))
    book.read(faulty(1, *SLOT, "Q3"))
    assert release(runtime, None) == 0
    assert book.standing()[SLOT][2] == "quarantined"
    ((_, _, reason),) = kept_out(book)
    assert "no usable label of Q3" in reason


def test_its_other_ends_are_not_released_without_it(book: Book, runtime: Runtime) -> None:
    book.read(seen(0, *SLOT, "Q2"))
    book.read(seen(1, *SLOT, "Q3"))
    book.read(faulty(2, *SLOT, "Q4"))
    for qid in ("Q2", "Q1", None):
        assert release(runtime, qid) == 0
    assert {state for *_, state in book.standing().values()} == {"quarantined"}
    assert len(kept_out(book)) == len(book.standing())


# Labels that change.


def test_a_new_label_of_an_unedited_fact_is_only_recorded(book: Book) -> None:
    book.read(seen(0, *SLOT, "Q2"))
    assert book.read(seen(1, *SLOT, "Q2=Ilir", label="Republic")) == 0
    assert book.changes() == []
    fact = book.fact(*SLOT)
    assert (fact.subject_label, fact.values[0]["label"]) == ("Republic", "Ilir")


@pytest.mark.parametrize("which", ["subject", "value"])
def test_a_new_label_of_an_edited_fact_is_a_change_at_both_ends(book: Book, which: str) -> None:
    book.read(seen(0, *SLOT, "Q2"))
    book.read(seen(1, *SLOT, "Q3"))
    book.settle(9)
    book.write()
    renamed = seen(10, *SLOT, "Q3", label="Republic") if which == "subject" else seen(10, *SLOT, "Q3=Ilir")
    assert book.read(renamed) == 1
    latest = {(change.qid, change.pid): change for change in book.changes()}
    direct, other = latest[SLOT], latest["Q3", LEADER_OF]
    assert (direct.state, other.state) == (ChangeState.SETTLING, ChangeState.SETTLING)
    if which == "subject":
        assert (direct.subject_label, other.new_values[0]["label"]) == ("Republic", "Republic")
    else:
        assert (direct.new_values[0]["label"], other.subject_label) == ("Ilir", "Ilir")
    assert book.read(renamed, at=20) == 0
    # Taken back, nothing remains to be rewritten.
    book.read(seen(11, *SLOT, "Q3"))
    assert {state for *_, state in book.standing().values()} == {"live", "uneditable"}


def test_a_new_label_of_one_who_names_an_edited_list_is_told_there(book: Book) -> None:
    book.read(seen(0, "Q1", TWIN, "Q5"))
    book.read(seen(1, "Q2", TWIN, "Q5"))
    book.settle(9)
    book.write()
    book.read(seen(10, "Q1", TWIN, "Q5", label="Novi"))
    latest = {(change.qid, change.pid): change for change in book.changes()}
    assert ("Q1", TWIN) not in latest, "the baseline fact itself is not edited"
    assert [value["label"] for value in latest["Q5", TWIN].new_values] == ["Novi", "L2"]


# Readings at the same revision.


def test_at_one_revision_the_later_reading_counts_and_a_replay_does_not(book: Book) -> None:
    """An end time that was written in advance has passed."""
    book.read(seen(0, *SLOT, "Q2"))
    ended = seen(0, *SLOT)
    assert book.read(ended, at=0) == 0, "not later than the reading we have"
    assert book.read(ended, at=7) == 1
    (change,) = [change for change in book.changes() if change.pid == LEADER]
    assert (change.revision, change.modified_at) == (100, book.fact(*SLOT).modified_at)
    assert (change.modified_at - START).total_seconds() == 7 * 3600
    assert book.read(ended, at=7) == book.read(ended, at=8) == 0
    assert book.read(seen(0, *SLOT, "Q2"), at=7) == 0, "the earlier reading again"


# Settling.


def test_a_change_settles_after_the_time_and_the_pulls(book: Book) -> None:
    book.read(seen(0, *SLOT, "Q2"))
    book.read(seen(1, *SLOT, "Q3"))
    assert book.settle(1.5, polls=2) == (0, 3)
    assert book.settle(1.9, polls=2) == (0, 3), "pulls enough, the time is not up"
    assert book.settle(2.0, polls=2) == (3, 0)
    book.read(seen(3, *SLOT, "Q4"))
    assert book.settle(9, polls=2)[0] == 0, "the time is up, seen by one pull"
    assert book.settle(9, polls=2)[0] == 3


def test_what_is_ambiguous_at_the_moment_does_not_stand(book: Book) -> None:
    book.read(seen(0, *SLOT, "Q2"))
    book.read(seen(1, *SLOT, "Q3"))
    book.read(seen(2, *SLOT, outcome=Outcome.AMBIGUOUS))
    assert book.settle(9) == (0, 3)
    assert {change.polls for change in book.changes()} == {0}
    book.read(seen(10, *SLOT, "Q3"))
    assert book.settle(11) == (3, 0)


def test_what_the_breaker_holds_does_not_settle_at_either_end(book: Book) -> None:
    book.read(seen(0, *SLOT, "Q2"))
    book.read(seen(1, *SLOT, "Q3"), seen(1, "Q7", TWIN, "Q8"))
    assert book.settle(9, held=(LEADER,))[0] == 2
    assert {state for (qid, pid), (*_, state) in book.standing().items() if pid in {LEADER, LEADER_OF}} == {"settling"}
    assert book.settle(9, held=("all",))[0] == 0
    assert book.settle(9)[0] == 3


def test_no_fact_has_a_value_without_a_label(book: Book) -> None:
    book.read(
        seen(0, *SLOT, "Q2"), faulty(0, "Q5", LEADER, "Q6"), faulty(1, *SLOT, "Q3"), faulty(2, "Q8", LEADER, "Q9")
    )
    with book.database.read() as session:
        assert all(value["label"] for fact in session.exec(select(Fact)) for value in fact.values)


def test_sitelinks_are_kept_up_to_date_and_are_no_change(book: Book) -> None:
    book.read(replace(seen(0, *SLOT, "Q2"), sitelinks=None))
    book.read(replace(seen(0, *SLOT, "Q2"), sitelinks=40))
    assert book.fact(*SLOT).sitelinks == 40, "read at the same revision by a newer release"
    book.read(replace(seen(2, *SLOT, "Q2"), sitelinks=41))
    book.read(replace(seen(1, *SLOT, "Q2"), sitelinks=39), seen(3, *SLOT, "Q2"))
    assert (book.fact(*SLOT).sitelinks, book.changes()) == (41, [])
