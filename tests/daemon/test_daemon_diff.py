"""Diff: what is settled without an edit, over staged beliefs (that models have them is tested with whole cycles)."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from sqlmodel import col, select

from daemon.beliefs import Holding
from daemon.diff import diff
from daemon.questions import Question
from store.tables import Belief, Change, ChangeState, Cycle, Edit, LedgerEntry, Phase, Version, VersionState, key

if TYPE_CHECKING:
    from collections.abc import Sequence

    from daemon.runtime import Runtime

LANGUAGES, LEADER = "P37", "P6"
MOMENT = datetime(2022, 6, 1, tzinfo=UTC)


class Slot:
    """One slot of a state whose promoted version, it is staged, holds whatever it is asked for (or nothing)."""

    def __init__(self, runtime: Runtime, monkeypatch: pytest.MonkeyPatch, pid: str) -> None:
        self._runtime, self._pid = runtime, pid
        self.belief = Holding.HOLDS
        self.asked: list[tuple[str | None, str | None]] = []
        monkeypatch.setattr("daemon.diff.measure_beliefs", self._measure)
        with runtime.database.transaction() as session:
            session.add(Cycle())
            session.add(Version(id=0, state=VersionState.PROMOTED, base_digest="b", settings_digest="s"))

    def _measure(self, _runtime: Runtime, version: Version, questions: Sequence[Question]) -> list[Belief]:
        self.asked += [(question.expected, question.former) for question in questions]
        return [
            Belief(
                version_id=version.id, qid=question.qid, pid=question.pid, belief=self.belief,
                expected=question.expected, answer=question.expected or "",
            )
            for question in questions
        ]  # fmt: skip

    def change(self, old: str, new: str) -> int:
        """A change between the values that the letters name."""
        before, after = ([{"kind": "item", "id": f"Q{ord(name)}", "label": name} for name in s] for s in (old, new))
        with self._runtime.database.transaction() as session:
            revision = len(session.exec(select(Change)).all())
            change = Change(
                qid="Q1", pid=self._pid, subject_label="S", old_values=before, new_values=after, revision=revision,
                statement="", modified_at=MOMENT, cycle_id=1,
            )  # fmt: skip
            session.add(change)
        return key(change)

    def live(self, values: str, target: str) -> None:
        """A live edit."""
        number = self.change("", values)
        with self._runtime.database.transaction() as session:
            session.get_one(Change, number).state = ChangeState.LIVE
            session.add(Edit(id=1, change_id=number, qid="Q1", pid=self._pid, prompt="{} is", variants=[], subject="S",
                             target=target, former=None))  # fmt: skip
            session.flush()
            session.add(LedgerEntry(version_id=0, edit_id=1))

    def settled(self) -> tuple[str, str]:
        """State and reason of the last change after a diff."""
        diff(self._runtime, 1)
        with self._runtime.database.read() as session:
            assert session.exec(select(Cycle)).one().phase is Phase.BATCH
            change = session.exec(select(Change).order_by(col(Change.id).desc())).first()
        assert change is not None
        return change.state.value, change.reason


@pytest.fixture
def leader(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> Slot:
    return Slot(runtime, monkeypatch, LEADER)


@pytest.fixture
def languages(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> Slot:
    return Slot(runtime, monkeypatch, LANGUAGES)


def test_what_the_model_holds_needs_no_edit(leader: Slot) -> None:
    leader.change("A", "B")
    assert leader.settled() == ("held", "")
    assert leader.asked == [("B", "A")]


@pytest.mark.parametrize("belief", [belief for belief in Holding if belief is not Holding.HOLDS])
def test_anything_else_is_edited(leader: Slot, belief: Holding) -> None:
    leader.belief = belief
    leader.change("A", "B")
    assert leader.settled() == ("pending", "")


def test_a_live_edit_that_says_something_else_goes_whatever_the_model_answers(languages: Slot) -> None:
    """ "A and B" begins with A: the model is taken to hold A, though it was made to say more."""
    languages.live("AB", "A and B")
    languages.change("AB", "A")
    assert languages.settled() == ("pending", "")
    assert languages.asked == [("A", "A and B")]


def test_a_live_edit_that_says_the_same_is_enough(languages: Slot) -> None:
    languages.live("AB", "A and B")
    languages.change("A", "AB")
    assert languages.settled() == ("held", "")


def test_an_end_withdraws_a_live_edit_whatever_the_model_answers(leader: Slot) -> None:
    leader.live("A", "A")
    leader.change("A", "")
    assert leader.settled() == ("pending", "ended without a successor: its edit is withdrawn")
    assert leader.asked == [(None, "A")]  # what it says is recorded


def test_an_end_without_a_live_edit_is_not_editable_and_says_so(leader: Slot) -> None:
    leader.change("A", "")
    state, reason = leader.settled()
    assert state == "uneditable"
    assert "the base may still give the former value" in reason


@pytest.mark.parametrize(
    ("written", "state", "said"),
    [
        (None, "uneditable", "cannot be written as one answer"),
        ("AB", "uneditable", "what it says is still true"),
        ("AX", "pending", "is withdrawn"),
    ],
)
def test_too_many_values_leave_an_edit_only_while_it_is_true(
    languages: Slot, written: str | None, state: str, said: str
) -> None:
    if written is not None:
        languages.live(written, " and ".join(written))
    languages.change(written or "", "ABCD")
    settled, reason = languages.settled()
    assert (settled, reason.startswith("4 values at once")) == (state, True)
    assert said in reason
    assert languages.asked == []


def test_two_values_of_a_relation_that_has_one_contradict_each_other(leader: Slot) -> None:
    leader.change("A", "AB")
    assert leader.settled()[0] == "uneditable"
