"""The pure parts of the trials of the gate and of the ten cycles."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyoxigraph as ox
import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from gate_trials import summary
from ten_cycles import beyond_margin
from trial_kinds import NO_HARM, harmless, sabotaged
from world import Changed, Said, Value, World, groups

from store.tables import GateMeasure

if TYPE_CHECKING:
    from collections.abc import Sequence

WD, RDFS, SCHEMA = "http://www.wikidata.org/entity/", "http://www.w3.org/2000/01/rdf-schema#", "http://schema.org/"
CURRENT = """
PREFIX wd: <http://www.wikidata.org/entity/> PREFIX p: <http://www.wikidata.org/prop/>
PREFIX ps: <http://www.wikidata.org/prop/statement/> PREFIX rdfs: <http://www.w3.org/2000/01/rdf-schema#>
PREFIX schema: <http://schema.org/>
SELECT ?subject ?value ?revision WHERE {
  wd:%s p:%s/ps:%s ?v ; rdfs:label ?subject ; schema:version ?revision . ?v rdfs:label ?value }
"""


def changed(slot: int, when: int, old: str = "old", new: str = "new") -> Changed:
    said = Said(f"Q99000{slot}", "P1308", f"Office {slot}", Value(f"Q98{when}", new))
    return Changed(said, Value("Q97", old), f"{2000 + when}-01-01")


# Sizes and kinds


@pytest.mark.parametrize("number", [1, 8, 40])
def test_there_are_so_many_harmless_candidates_at_least(number: int) -> None:
    steps = [step for scenario in harmless(number) for step in scenario]
    assert number <= len(steps) <= number + 1
    assert {step.kind for step in steps} <= set(NO_HARM)


def test_forty_of_each_are_all_kinds_and_few_are_two_of_each_kind() -> None:
    assert Counter(step.kind for scenario in harmless(40) for step in scenario) == {
        NO_HARM[0]: 10, NO_HARM[1]: 15, NO_HARM[2]: 15,
    }  # fmt: skip
    everything = [step for (step,) in sabotaged(40)]
    assert len(everything) == 40
    assert len({(step.kind, step.detail) for step in everything}) == 40
    assert set(Counter(step.kind for (step,) in sabotaged(14)).values()) == {2}
    assert len(Counter(step.kind for (step,) in sabotaged(14))) == 7


# What came of them


def row(kind: str, outcome: str, *named: str) -> dict[str, Any]:
    return {"kind": kind, "promoted": outcome == "promoted", "outcome": outcome, "named": named, "reason": outcome}


def test_totals_tell_harmless_from_sabotaged_and_name_the_reasons() -> None:
    rows = [
        row(NO_HARM[0], "promoted"),
        row(NO_HARM[1], "held", "control"),
        row("noise", "rejected", "control", "perplexity"),
        row("noise", "rejected", "perplexity"),
        row("noise", "promoted", "capacity"),
    ]
    found = summary(rows)
    assert {name: found[name] for name in ("aa_total", "aa_promoted", "sabotage_total", "sabotage_promoted")} == {
        "aa_total": 2, "aa_promoted": 1, "sabotage_total": 3, "sabotage_promoted": 1,
    }  # fmt: skip
    assert found["kinds"][-1] == {
        "kind": "noise", "count": 3, "promoted": 1, "outcomes": {"rejected": 2, "promoted": 1},
        "named": {"control": 1, "perplexity": 2}, "reason": "rejected",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("against", "loss", "beyond"),
    [("base", 0.051, True), ("base", 0.05, False), ("limit", 0.06, True), ("promoted", 0.06, False),
     ("base", None, False)],
)  # fmt: skip
def test_beyond_its_margin_is_what_lost_more_than_allowed_against_the_base(
    against: str, loss: float | None, beyond: bool
) -> None:
    measure = GateMeasure(
        version_id=1, measure="control", against=against, candidate=0.9, reference=0.95, threshold=0.05, n=100,
        verdict="pass", detail="control 90 %", loss=loss,
    )  # fmt: skip
    assert beyond_margin([measure]) == (["control 90 %"] if beyond else [])


# The world


@given(slots=st.lists(st.integers(0, 30), min_size=1, max_size=60), number=st.integers(1, 10))
def test_groups_hold_everything_in_order_and_a_slot_once_where_it_can_wait(slots: list[int], number: int) -> None:
    changes = [changed(slot, when) for when, slot in enumerate(slots)]
    made = groups(changes, number)
    assert len(made) == number
    assert sorted((c.when, c.slot) for group in made for c in group) == sorted((c.when, c.slot) for c in changes)
    for slot in {change.slot for change in changes}:
        places = [(place, change.when) for place, group in enumerate(made) for change in group if change.slot == slot]
        assert [when for _, when in places] == sorted(when for _, when in places)
    for group in made[:-1]:
        assert max(Counter(change.slot for change in group).values(), default=0) <= 1


def told(world: World, qid: str, pid: str) -> Sequence[tuple[str, str, int]]:
    store = ox.Store()
    store.load(world.turtle().encode(), format=ox.RdfFormat.TURTLE)
    rows = store.query(CURRENT % (qid, pid, pid))
    return [(r["subject"].value, r["value"].value, int(r["revision"].value)) for r in rows]  # type: ignore[union-attr]


def test_the_world_says_the_old_value_until_the_change_happens_and_with_a_later_revision_then() -> None:
    first, second = changed(1, 1, "A", 'B "the second"'), changed(1, 2, 'B "the second"', "C")
    stays = Said("Q990009", "P36", "Nowhere", Value("Q980000", "Capital"))
    world = World([stays], [[first], [second]])
    assert first.old.label == "A"
    seen = []
    for expected in ("A", 'B "the second"', "C"):
        ((subject, value, revision),) = told(world, first.said.qid, "P1308")
        assert (subject, value) == ("Office 1", expected)
        seen.append(revision)
        assert [each[:2] for each in told(world, "Q990009", "P36")] == [("Nowhere", "Capital")]
        if expected != "C":
            world.advance()
    assert seen == sorted(set(seen))


def test_the_demos_items_are_left_as_they_are() -> None:
    norway = Said("Q20", "P36", "Norway", Value("Q585", "Another Oslo"))
    assert [value for _, value, _ in told(World([norway], []), "Q20", "P36")] == ["Oslo"]
