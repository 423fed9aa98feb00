"""The batch phase: what is taken, what waits and why, and what the cycle says of it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from observations import LEADER, LEADER_OF, Book, seen
from small_world import Factsyncd, turtle
from sqlmodel import col, select
from structlog.testing import capture_logs

from daemon.backlog import expected_capacity
from daemon.batch import batch
from daemon.errors import ConfigInvalid
from daemon.promote import accept
from editor import EditRequest, RequestInvalid
from store import open_database
from store.ledger import ledger_edits
from store.tables import Belief, Change, ChangeState, Cycle, Edit, Phase, Version, VersionState

if TYPE_CHECKING:
    from pathlib import Path

    from daemon.runtime import Runtime

NOON = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
CAPITAL, BOARD = "P36", "P488"
pytestmark = pytest.mark.usefixtures("all_writable")


class Office:
    """The phase, run at times that a test chooses, over a book of what was pulled."""

    def __init__(self, runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
        self.runtime, self.book, self.now = runtime, Book(runtime.database), NOON
        monkeypatch.setattr("daemon.batch.utc_now", lambda: self.now)
        with runtime.database.transaction() as session:
            session.add(Version(id=0, state=VersionState.PROMOTED, base_digest="b", settings_digest="s"))

    def set(self, **batch_settings: Any) -> None:
        section = self.runtime.settings.batch.model_copy(update=batch_settings)
        self.runtime.settings = self.runtime.settings.model_copy(update={"batch": section})

    def told(self, hours: float, *facts: tuple[str, str, str]) -> None:
        """Facts change and settle; an empty value ends one."""
        self.book.read(*(seen(hours, qid, pid, *([value] if value else [])) for qid, pid, value in facts))
        self.book.settle(hours + 8)

    def run(self) -> Cycle:
        """Run the phase in a cycle of its own; returns the cycle as it stands then."""
        with self.runtime.database.transaction() as session:
            cycle = Cycle(phase=Phase.BATCH)
            session.add(cycle)
        assert cycle.id is not None
        batch(self.runtime, cycle.id)
        with self.runtime.database.read() as session:
            return session.get_one(Cycle, cycle.id)

    def states(self, pid: str = LEADER) -> dict[str, str]:
        return {qid: state for (qid, slot), (_, _, state) in self.book.standing().items() if slot == pid}

    def refuse(self) -> None:
        """The candidate is not promoted."""
        with self.runtime.database.transaction() as session:
            for change in session.exec(select(Change).where(Change.state == ChangeState.BATCHED)):
                change.state = ChangeState.QUARANTINED

    def waiting(self, reason: str) -> float | None:
        sample = self.runtime.metrics.registry.get_sample_value
        return sample("factsyncd_waiting_changes", {"reason": reason})


@pytest.fixture
def office(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> Office:
    return Office(runtime, monkeypatch)


def test_too_few_wait_for_others_and_the_cycle_says_until_when(office: Office) -> None:
    office.set(minimum=5, wait_seconds=3600)
    office.told(1, ("Q1", CAPITAL, "Q11"), ("Q2", CAPITAL, "Q12"))
    cycle = office.run()
    assert (cycle.outcome, cycle.detail) == ("nothing", "4 changes wait for a batch of 5 or until 2026-03-01 13:00 UTC")
    assert (cycle.counts["waiting"], office.waiting("batch")) == (4, 4)
    assert office.states(CAPITAL) == {"Q1": "pending", "Q2": "pending"}
    office.now += timedelta(minutes=30)
    office.told(2, ("Q3", CAPITAL, "Q13"))
    assert office.run().counts["batched"] == 6
    assert office.waiting("batch") == 0


def test_after_the_longest_wait_a_small_batch_goes(office: Office) -> None:
    office.set(minimum=5, wait_seconds=3600)
    office.told(1, ("Q1", CAPITAL, "Q11"))
    office.run()
    office.now += timedelta(minutes=59)
    office.told(2, ("Q2", CAPITAL, "Q12"))
    assert office.run().detail == "4 changes wait for a batch of 5 or until 2026-03-01 13:00 UTC"
    office.now += timedelta(minutes=1)
    assert office.run().counts["batched"] == 4, "also what has not waited that long"
    with office.runtime.database.read() as session:
        assert {change.waiting_since for change in session.exec(select(Change))} == {None}, "a later wait begins anew"


def test_the_oldest_go_first_without_priorities(office: Office) -> None:
    office.set(maximum=2)
    for number in range(1, 4):
        office.told(number, (f"Q{number}", CAPITAL, f"Q{10 + number}"))
    assert office.run().counts == {"batched": 2, "waiting": 4}
    assert office.states(CAPITAL) == {"Q1": "batched", "Q2": "pending", "Q3": "pending"}
    assert office.waiting("maximum") == 4


def test_a_property_with_priority_goes_first_at_both_ends(office: Office) -> None:
    office.set(maximum=2, priority={LEADER: 1.0})
    office.told(1, ("Q1", CAPITAL, "Q11"), ("Q2", LEADER, "Q12"))
    office.run()
    assert office.states() == {"Q2": "batched"}
    assert office.states(LEADER_OF) == {"Q12": "batched"}
    assert office.states(CAPITAL) == {"Q1": "pending"}


def test_waiting_makes_up_for_priority(office: Office) -> None:
    office.set(maximum=2, priority={LEADER: 1.0}, aging_seconds=3600)
    office.told(1, ("Q1", CAPITAL, "Q11"), ("Q2", LEADER, "Q12"))
    office.run()
    office.refuse()
    office.now += timedelta(minutes=61)
    office.told(2, ("Q3", LEADER, "Q13"))
    office.run()
    assert office.states(CAPITAL) == {"Q1": "batched"}
    assert office.states()["Q3"] == "pending"


@pytest.mark.parametrize("sitelinks", [(3, 200), (None, None)])
def test_a_prominent_subject_goes_first(office: Office, sitelinks: tuple[int | None, int | None]) -> None:
    """By its pages in wikis; where the source does not say, by how many facts of it are tracked."""
    office.set(maximum=2, prominence=1.0)
    office.book.read(seen(0, "Q2", BOARD, "Q30"), seen(0, "Q2", "P138", "Q31"))
    office.book.read(
        replace(seen(1, "Q1", CAPITAL, "Q11"), sitelinks=sitelinks[0]),
        replace(seen(1, "Q2", CAPITAL, "Q12"), sitelinks=sitelinks[1]),
    )
    office.book.settle(9)
    office.run()
    assert office.states(CAPITAL) == {"Q1": "pending", "Q2": "batched"}


def test_what_cannot_be_written_leaves_its_place_to_others(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    def check(_model: object, request: EditRequest, _text: object) -> None:
        if "L11" in (request.subject, request.target.rstrip(".")):
            raise RequestInvalid("too long")

    monkeypatch.setattr("daemon.batch.check_request", check)
    office.set(minimum=2, maximum=2)
    office.told(1, ("Q1", CAPITAL, "Q11"), ("Q2", CAPITAL, "Q12"))
    assert office.run().counts["batched"] == 2
    assert office.states(CAPITAL) == {"Q1": "quarantined", "Q2": "batched"}
    # Alone it had been enough, without it there is nothing.
    office.told(2, ("Q3", CAPITAL, "Q11"))
    assert office.run().outcome == "nothing"


@pytest.fixture
def full(office: Office) -> Office:
    """Two facts of two ends are live: four edits, and no more may be."""
    office.set(capacity=4)
    office.told(1, ("Q1", CAPITAL, "Q11"), ("Q2", CAPITAL, "Q12"))
    office.book.write()
    assert len(edits(office)) == 4
    return office


def edits(office: Office) -> dict[tuple[str, str], Edit]:
    """The ledger of the newest version."""
    with office.runtime.database.read() as session:
        newest = session.exec(select(Version).order_by(col(Version.id).desc())).first()
        assert newest is not None
        return {(edit.qid, edit.pid): edit for edit in ledger_edits(session, newest.id)}


def test_above_the_capacity_new_edits_wait_for_an_operator(full: Office) -> None:
    full.told(2, ("Q3", CAPITAL, "Q13"))
    with capture_logs() as logs:
        cycle = full.run()
    assert cycle.outcome == "held"
    assert cycle.detail == (
        "2 changes wait for room in the ledger, which has 4 edits of at most 4: "
        "edit more layers, use a larger model or raise batch.capacity"
    )
    assert [(log["log_level"], log["live"], log["capacity"]) for log in logs if log["event"] == "ledger full"] == [
        ("warning", 4, 4)
    ]
    assert full.waiting("capacity") == 2
    assert full.runtime.metrics.registry.get_sample_value("factsyncd_ledger_capacity") == 4
    full.set(capacity=6)
    assert full.run().counts["batched"] == 2
    assert full.waiting("capacity") == 0


def test_replacements_and_withdrawals_pass_a_full_ledger_and_make_room(full: Office) -> None:
    full.set(capacity=3)  # lower than what is live already
    full.told(2, ("Q3", CAPITAL, "Q13"), ("Q1", CAPITAL, "Q21"), ("Q2", CAPITAL, ""))
    assert full.run().outcome is None, "a candidate is in work"
    assert full.states(CAPITAL) == {"Q3": "pending", "Q1": "batched", "Q2": "batched"}
    assert set(edits(full)) == {("Q1", CAPITAL), ("Q21", "P1376")}
    full.set(capacity=4)
    with full.runtime.database.transaction() as session:
        accept(session, session.get_one(Version, 2), "it passed", ["directory"])
    assert full.run().counts["batched"] == 2
    assert full.states(CAPITAL)["Q3"] == "batched"


def test_without_a_bound_the_ledger_grows_up_to_the_load_of_the_promoted_version(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    office.told(1, ("Q1", CAPITAL, "Q11"))
    office.book.write()
    office.told(2, ("Q2", CAPITAL, "Q12"), ("Q3", CAPITAL, "Q13"))
    office.book.write()
    with office.runtime.artifacts.stage(2) as staging:
        (staging / "config.json").write_text("{}", "utf-8")
        # Half of a key's dimensions by six edits: eight of them come closest to 0.7.
        office.runtime.artifacts.seal(staging, 2, extra={"load": 0.5, "ledger": [1, 2, 3, 4, 5, 6]})
    office.set(capacity_load=0.7)
    office.told(3, ("Q4", CAPITAL, "Q14"), ("Q5", CAPITAL, "Q15"))
    assert office.run().counts == {"batched": 2, "waiting": 2}
    assert office.states(CAPITAL)["Q5"] == "pending"
    assert office.waiting("capacity") == 2
    office.refuse()
    office.told(4, ("Q6", CAPITAL, "Q16"))
    # What was solved with other layers does not tell.
    monkeypatch.setattr(office.runtime, "settings_digest", lambda _model: "other layers")
    assert office.run().counts == {"batched": 4, "waiting": 0}


def test_the_expected_capacity_is_in_proportion_to_what_the_edits_take_up() -> None:
    assert expected_capacity({"load": 0.25, "ledger": [1] * 100}, 0.8) == 320
    for unknown in ({}, {"load": 0.0, "ledger": []}, {"load": 0.0, "ledger": [1]}):
        assert expected_capacity(unknown, 0.8) is None


def test_what_overtakes_a_rejected_change_displaces_what_the_model_holds(office: Office) -> None:
    office.told(0, ("Q1", CAPITAL, "Q10"))
    office.told(1, ("Q1", CAPITAL, "Q11"))
    office.run()
    office.told(2, ("Q1", CAPITAL, "Q12"))
    office.refuse()
    office.run()
    assert edits(office)["Q1", CAPITAL].former == "L10"


def test_a_priority_for_what_is_no_property_is_refused_at_the_start(office: Office) -> None:
    office.set(priority={"P36": 1.0, "P99999": 2.0})
    with pytest.raises(ConfigInvalid, match=r"batch\.priority: P99999 is no property in the relation catalogue"):
        _ = office.runtime.relations


def measured(config: Path) -> set[tuple[int, str, str, datetime]]:
    """What versions were asked, and when."""
    with open_database(config.parent / "state" / "factsyncd.sqlite") as database, database.read() as session:
        return {(row.version_id, row.qid, row.pid, row.measured_at) for row in session.exec(select(Belief))}


def test_whole_cycles_wait_and_grow_up_to_the_capacity(factsyncd: Factsyncd, ready: Path) -> None:
    (ready.parent / "facts.ttl").write_text(turtle(after=True), "utf-8")

    def once(code: int, **batch_settings: int) -> Any:
        env = {f"FACTSYNCD_BATCH__{name.upper()}": str(value) for name, value in batch_settings.items()}
        finished = factsyncd("once", "--json", "--config", ready, env=env)
        assert finished.code == code, finished
        return finished.data

    assert once(0, minimum=9)["detail"].startswith("8 changes wait for a batch of 9 or until ")
    beliefs = measured(ready)
    asked = once(0, minimum=9)
    assert measured(ready) == beliefs != set(), "the same version is not asked again about what waits"
    assert (asked["outcome"], asked["counts"]["pending"], asked["counts"]["waiting"]) == ("nothing", 8, 8)
    some = once(0, minimum=9, wait_seconds=0, capacity=5)
    assert (some["outcome"], some["counts"]["batched"], some["counts"]["waiting"]) == ("promoted", 4, 4)
    assert "which has 4 edits of at most 5" in once(4, capacity=5)["detail"]
    assert once(0)["outcome"] == "promoted"
    assert factsyncd("status", "--json", "--config", ready).data["live_edits"] == 8
