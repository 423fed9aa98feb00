"""Whole cycles over poisoned snapshots: what must not reach the weights does not, and the operator is told."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_graph import at
from small_world import CHANGES, COUNTRIES, Factsyncd, graph
from sqlmodel import select

from sources.vocabulary import is_qid
from store import open_database
from store.tables import Belief, Change, Edit, ProbeResult

VANDAL = "Q666"


def put(ready: Path, now: str, head: str | None = None, label: str = "Vandal") -> None:
    """The first instant at a later time, with another head of Sweden from 2022-06-01 00:00 on, or back again."""
    world = graph(after=False)
    world.replicated = at(now)
    if head is not None:
        world.lines = [line for line in world.lines if not line.startswith("wd:Q34 ")]
        revision = 5000 + int(now[11:13] + now[14:16])
        world.item("Q34", "Sweden", revision, now if head != VANDAL else "2022-06-01T00:00:00")
        world.says("Q34", "P6", f"wd:{head}")
        capital = 9000 + 10 * list(COUNTRIES).index("Q34") + 1
        world.says("Q34", "P36", f"wd:Q{capital}").label(VANDAL, label)
    (ready.parent / "facts.ttl").write_text(world.turtle(), "utf-8")


def once(factsyncd: Factsyncd, ready: Path, code: int = 0) -> dict[str, object]:
    finished = factsyncd("once", "--json", "--config", ready)
    assert finished.code == code, finished.errors
    return dict(finished.data)


def add(ready: Path, text: str) -> None:
    ready.write_text(ready.read_text("utf-8") + text, "utf-8")


def texts(ready: Path) -> str:
    """Everything that was ever made into a prompt or an answer."""
    with open_database(ready.parent / "state" / "factsyncd.sqlite") as database, database.read() as session:
        edits = [(edit.prompt, edit.subject, edit.target, edit.former) for edit in session.exec(select(Edit))]
        probes = [(probe.prompt, probe.expected) for probe in session.exec(select(ProbeResult))]
        return repr((edits, probes, [belief.expected for belief in session.exec(select(Belief))]))


def test_a_vandalised_value_that_is_taken_back_in_time_never_becomes_an_edit(factsyncd: Factsyncd, ready: Path) -> None:
    add(ready, "\n[settle]\nseconds = 3600\npolls = 2\n")
    former = f"Q{9000 + 10 * list(COUNTRIES).index('Q34') + 2}"
    details = []
    for now, head in (
        ("2022-06-01T00:10:00", VANDAL), ("2022-06-01T00:50:00", VANDAL), ("2022-06-01T00:55:00", former),
        ("2022-06-01T09:00:00", former), ("2022-06-02T09:00:00", former),
    ):  # fmt: skip
        put(ready, now, head)
        cycle = once(factsyncd, ready)
        assert cycle["outcome"] == "nothing"
        details.append(cycle["detail"])
    assert details == ["3 changes have not settled yet"] * 2 + ["every fact is as recorded"] * 3
    assert "Vandal" not in texts(ready)


def test_a_value_that_stays_becomes_an_edit_when_it_has_settled(factsyncd: Factsyncd, ready: Path) -> None:
    add(ready, "\n[settle]\nseconds = 3600\npolls = 2\n")
    for now, outcome in (
        ("2022-06-01T00:10:00", "nothing"), ("2022-06-01T00:50:00", "nothing"), ("2022-06-01T01:00:00", "promoted"),
    ):  # fmt: skip
        put(ready, now, VANDAL)
        assert once(factsyncd, ready)["outcome"] == outcome
    assert "Vandal" in texts(ready)


def test_a_wave_holds_the_cycle_until_the_operator_resumes(factsyncd: Factsyncd, ready: Path) -> None:
    add(ready, "\n[breaker]\nminimum = 2\nproperty_share = 0.2\n")
    (ready.parent / "facts.ttl").write_text(graph(after=True).turtle(), "utf-8")
    for _ in range(2):
        cycle = once(factsyncd, ready, code=4)
        assert cycle["outcome"] == "held"
        assert "4 of 12 P6 facts" in str(cycle["detail"])
        assert "factsyncd resume" in str(cycle["detail"])
    status = factsyncd("status", "--json", "--config", ready).data
    assert [latch["property"] for latch in status["breakers"]] == ["P6"]
    assert "factsyncd resume" in factsyncd("status", "--config", ready).output
    held = factsyncd("facts", "--state", "settling", "--json", "--config", ready).data
    assert {fact["qid"] for fact in held} == set(CHANGES)
    assert factsyncd("resume", "--config", ready).code == 0
    assert once(factsyncd, ready)["outcome"] == "promoted"
    assert factsyncd("status", "--json", "--config", ready).data["breakers"] == []


@pytest.mark.parametrize("label", ["{Vandal}", "Van\u202edal", "Vandal\x07", " "])
def test_a_malformed_label_is_kept_out_by_id_and_is_in_no_prompt(factsyncd: Factsyncd, ready: Path, label: str) -> None:
    put(ready, "2022-06-01T00:10:00", VANDAL, label)
    assert once(factsyncd, ready)["outcome"] == "nothing"
    (kept,) = factsyncd("quarantine", "list", "--json", "--config", ready).data
    assert (kept["kind"], kept["qid"], kept["new_values"]) == (
        "change", "Q34", [{"kind": "item", "id": VANDAL, "label": ""}],
    )  # fmt: skip
    assert VANDAL in factsyncd("quarantine", "list", "--config", ready).output
    assert "0 changes" in factsyncd("quarantine", "release", "--config", ready).output
    assert once(factsyncd, ready)["outcome"] == "nothing"
    (again,) = factsyncd("quarantine", "list", "--json", "--config", ready).data
    assert "no usable label" in again["reason"]
    put(ready, "2022-06-01T00:20:00", None)
    put(ready, "2022-06-01T00:30:00", VANDAL, "Magdalena")
    (ready.parent / "facts.ttl").write_text(
        (ready.parent / "facts.ttl").read_text("utf-8").replace('"2022-06-01T00:00:00Z"', '"2022-06-01T00:25:00Z"'),
        "utf-8",
    )
    assert once(factsyncd, ready)["outcome"] == "promoted", "a good reading supersedes it"
    assert factsyncd("quarantine", "list", "--json", "--config", ready).data == []
    assert "Vandal" not in texts(ready)


def test_what_is_no_item_is_recorded_as_none(factsyncd: Factsyncd, ready: Path) -> None:
    put(ready, "2022-06-01T00:10:00", VANDAL)
    file = ready.parent / "facts.ttl"
    file.write_text(file.read_text("utf-8").replace(f"ps:P6 wd:{VANDAL}", "ps:P6 <http://www.wikidata.org/entity/Q1'>"))
    assert factsyncd("pull", "--json", "--config", ready).code in {0, 1}
    with open_database(ready.parent / "state" / "factsyncd.sqlite") as database, database.read() as session:
        changes = session.exec(select(Change)).all()
        values = [value for change in changes for value in change.new_values]
    assert all(is_qid(change.qid) for change in changes)
    assert all(is_qid(value["id"]) for value in values if value["kind"] == "item")


def test_an_audit_finds_no_drift_and_says_so_with_its_exit_code(factsyncd: Factsyncd, ready: Path) -> None:
    assert once(factsyncd, ready)["outcome"] == "nothing"
    finished = factsyncd("audit", "--sample", "50", "--json", "--config", ready)
    assert (finished.code, finished.data["compared"], finished.data["drifted"]) == (0, 24, 0)
    file = ready.parent / "facts.ttl"
    file.write_text(file.read_text("utf-8").replace('"Erna"', '"Jonas"'), "utf-8")
    finished = factsyncd("audit", "--sample", "50", "--json", "--config", ready)
    assert (finished.code, finished.data["drifted"]) == (1, 1)
    assert finished.data["properties"]["P6"] == {"compared": 12, "drifted": 1}
    assert "Jonas" in factsyncd("audit", "--config", ready).output


def test_everything_is_read_again_on_demand(factsyncd: Factsyncd, ready: Path) -> None:
    assert once(factsyncd, ready)["outcome"] == "nothing"
    file = ready.parent / "facts.ttl"
    file.write_text(file.read_text("utf-8").replace('"2022-01-01T00:00:00Z"', '"2022-01-02T00:00:00Z"'), "utf-8")
    assert factsyncd("pull", "--json", "--config", ready).data["counts"]["items"] == 0
    assert once(factsyncd, ready)["outcome"] == "nothing"
    assert factsyncd("pull", "--full", "--json", "--config", ready).data["counts"]["items"] == len(COUNTRIES)
