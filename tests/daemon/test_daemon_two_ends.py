"""Whole cycles over facts with two ends: written, replaced, listed, withdrawn and kept out together."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from small_graph import time_literal
from small_world import NEW_HEADS, Factsyncd, graph
from sqlmodel import col, func, select

from editor import natural_stop
from store import open_database
from store.ledger import ledger_edits, promoted
from store.tables import Change, ProbeResult

if TYPE_CHECKING:
    from pathlib import Path

TWIN = "P190"
LABELS = {f"Q{70 + n}": label for n, label in enumerate(("Porto", "Turku", "Lund", "Brno", "Pest", "Oslo"))}
PORTO, TURKU, LUND, BRNO, PEST, OSLO = LABELS
UNWRITABLE = " ".join(["Porto"] * 18)


class Towns:
    """Twin towns beside the small world at its second instant (whose edits give the gate neighbours to probe)."""

    def __init__(self, factsyncd: Factsyncd, config: Path) -> None:
        self._factsyncd, self._config = factsyncd, config
        self._day = 0
        self._said: dict[str, tuple[int, tuple[str, ...]]] = {}
        self._former: dict[str, set[str]] = {}
        self.env: dict[str, str] = {}
        config.write_text(config.read_text("utf-8").replace('["P6", "P36"]', '["P6", "P36", "P190"]'), "utf-8")

    def say(self, labels: dict[str, str] = LABELS, **twins: tuple[str, ...]) -> None:
        """The next day's snapshot: the towns given are modified, former twins have ended, no other end is stated."""
        self._day += 1
        for qid, towns in twins.items():
            self._said[qid] = self._day, towns
            self._former.setdefault(qid, set()).update(towns)
        world = graph(after=True)
        assert world.replicated is not None
        start = world.replicated
        for qid, (day, towns) in self._said.items():
            world.item(qid, None, 3000 + 100 * day + int(qid[1:]), f"{start + timedelta(days=day):%Y-%m-%dT%H:%M:%S}")
            for town in towns:
                world.says(qid, TWIN, f"wd:{town}")
            for town in self._former[qid] - set(towns):
                world.says(qid, TWIN, f"wd:{town}", P582=time_literal("2020-01-01"))
        for qid, label in labels.items():
            world.label(qid, label)
        world.replicated = start + timedelta(days=self._day)
        (self._config.parent / "facts.ttl").write_text(world.turtle(), "utf-8")

    def run(self, *command: str, code: int = 0) -> Any:
        finished = self._factsyncd(*command, "--config", self._config, env=self.env)
        assert (finished.code, finished.errors) == (code, ""), finished
        return finished

    def once(self, outcome: str = "promoted") -> None:
        assert self.run("once", "--json").data["outcome"] == outcome

    def live(self) -> dict[str, str]:
        """Targets of the live edits about twin towns."""
        with self._database() as database, database.read() as session:
            version = promoted(session)
            assert version is not None
            edits = [edit for edit in ledger_edits(session, version.id) if edit.pid == TWIN]
        targets = {edit.qid: edit.target for edit in edits}
        assert len(targets) == len(edits), "a slot has one edit"
        return targets

    def changes(self, qid: str) -> list[tuple[str, str]]:
        """State and reason of a town's changes."""
        with self._database() as database, database.read() as session:
            changes = select(Change).where(Change.qid == qid, Change.pid == TWIN).order_by(col(Change.id))
            return [(change.state.value, change.reason) for change in session.exec(changes)]

    def reversals(self) -> list[ProbeResult]:
        """Probes of retracted edits of the newest version."""
        with self._database() as database, database.read() as session:
            newest = select(func.max(ProbeResult.version_id)).scalar_subquery()
            wanted = select(ProbeResult).where(ProbeResult.kind == "reversal", ProbeResult.version_id == newest)
            return list(session.exec(wanted))

    def _database(self) -> Any:
        return open_database(self._config.parent / "state" / "factsyncd.sqlite")


@pytest.fixture
def towns(factsyncd: Factsyncd, ready: Path) -> Towns:
    return Towns(factsyncd, ready)


def test_both_ends_are_written_replaced_and_withdrawn_together(towns: Towns) -> None:
    towns.say(Q70=(TURKU,), Q72=(BRNO,))
    towns.once()
    assert towns.live() == {PORTO: "Turku", TURKU: "Porto", LUND: "Brno", BRNO: "Lund"}
    towns.say(Q70=(PEST,))
    towns.once()
    assert towns.live() == {PORTO: "Pest", PEST: "Porto", LUND: "Brno", BRNO: "Lund"}
    assert [state for state, _ in towns.changes(TURKU)] == ["superseded", "withdrawn"]
    towns.say(Q70=())
    towns.once()
    assert towns.live() == {LUND: "Brno", BRNO: "Lund"}
    for qid in (PORTO, PEST):
        assert towns.changes(qid)[-1] == ("withdrawn", "ended without a successor: its edit is withdrawn")
    towns.once("nothing")

    # A rollback undoes the withdrawal at both ends until it is released, or rolled forward again.
    towns.run("rollback")
    assert towns.live() == {PORTO: "Pest", PEST: "Porto", LUND: "Brno", BRNO: "Lund"}
    towns.once("nothing")
    assert {towns.changes(qid)[-1][0] for qid in (PORTO, PEST)} == {"quarantined"}
    towns.run("rollback", "3")
    assert {towns.changes(qid)[-1][0] for qid in (PORTO, PEST)} == {"withdrawn"}
    towns.run("rollback", "2")
    towns.run("quarantine", "release", PEST)
    towns.once()
    assert towns.live() == {LUND: "Brno", BRNO: "Lund"}


def test_what_is_withdrawn_has_to_be_answered_as_the_base_does(towns: Towns) -> None:
    towns.say(Q70=(TURKU,))
    towns.once()
    assert towns.reversals() == []
    towns.say(Q70=())
    towns.once()
    probes = towns.reversals()
    assert {(probe.qid, probe.pid) for probe in probes} == {(PORTO, TWIN), (TURKU, TWIN)}
    for probe in probes:
        said = towns.run("ask", probe.prompt, "--version", "0", "--json").data[0]["answer"]
        assert probe.expected == natural_stop(said)


def test_why_shows_both_ends(towns: Towns) -> None:
    towns.say(Q70=(TURKU,))
    towns.once()
    (direct,) = towns.run("why", PORTO, "--json").data
    assert [(e["qid"], e["pid"], e["state"]) for e in direct["changes"][0]["expanded_to"]] == [(TURKU, TWIN, "live")]
    (expanded,) = towns.run("why", TURKU, TWIN, "--json").data
    assert expanded["fact"] is None
    assert expanded["changes"][0]["expanded_from"] == {"qid": PORTO, "pid": TWIN}
    assert expanded["edits"][0]["live_in_versions"] == [1]
    assert {probe["kind"] for probe in expanded["probes"]} == {"efficacy", "paraphrase", "question"}
    assert f"expanded to Turku ({TURKU}) P190: nothing -> Porto" in towns.run("why", PORTO).output
    assert f"expanded from {PORTO} P190: live" in towns.run("why", TURKU).output
    (leader,) = towns.run("why", NEW_HEADS["Q38"], "--json").data
    assert leader["edits"][0]["target"] == "Italy"


def test_values_are_added_to_a_list_and_taken_from_it(towns: Towns) -> None:
    towns.say(Q70=(TURKU,))
    towns.once()
    towns.say(Q70=(TURKU, LUND))
    towns.once()
    assert towns.live() == {PORTO: "Turku and Lund", TURKU: "Porto", LUND: "Porto"}
    # Another town's list grows at its other end.
    towns.say(Q73=(LUND,))
    towns.once()
    assert towns.live()[LUND] == "Porto and Brno"
    towns.say(Q70=(LUND,))
    towns.once()
    assert towns.live() == {PORTO: "Lund", LUND: "Porto and Brno", BRNO: "Lund"}


def test_a_list_that_is_too_long_is_not_written_and_withdraws_what_is_no_longer_true(towns: Towns) -> None:
    towns.env["FACTSYNCD_EDIT__LONGEST_LIST"] = "2"
    towns.say(Q70=(TURKU,))
    towns.once()
    towns.say(Q70=(TURKU, LUND, BRNO))
    towns.once()
    assert towns.live() == {PORTO: "Turku", TURKU: "Porto", LUND: "Porto", BRNO: "Porto"}
    state, reason = towns.changes(PORTO)[-1]
    assert (state, reason.split(";")[0]) == ("uneditable", "3 values at once cannot be written as one answer")
    towns.say(Q70=(LUND, BRNO, PEST))
    towns.once()
    assert towns.live() == {LUND: "Porto", BRNO: "Porto", PEST: "Porto"}
    assert towns.changes(PORTO)[-1][0] == "withdrawn"


def test_what_ends_without_an_edit_leaves_the_base_as_it_is_and_says_so(towns: Towns) -> None:
    towns.say(Q70=(TURKU, LUND, BRNO, PEST))  # more than is written
    towns.once()
    towns.run("rollback", "0")
    towns.say(Q70=())
    towns.once("nothing")
    assert towns.live() == {}
    for qid in (PORTO, TURKU):
        state, reason = towns.changes(qid)[-1]
        assert (state, reason.split(";")[0]) == ("uneditable", "ended without a successor")


def test_what_cannot_be_written_keeps_both_ends_as_they_are(towns: Towns) -> None:
    towns.say(Q70=(TURKU,))
    towns.once()
    towns.say(Q70=(LUND,), labels=LABELS | {LUND: UNWRITABLE})
    towns.once("nothing")
    assert towns.live() == {PORTO: "Turku", TURKU: "Porto"}
    for qid in (PORTO, TURKU, LUND):
        assert towns.changes(qid)[-1][0] == "quarantined"


def test_a_full_batch_does_not_part_the_ends(towns: Towns) -> None:
    towns.env["FACTSYNCD_BATCH__MAXIMUM"] = "3"
    towns.say(Q70=(TURKU,))
    for edits in (2, 4):  # those of two facts would be more than three
        towns.once()
        assert towns.run("status", "--json").data["live_edits"] == edits
