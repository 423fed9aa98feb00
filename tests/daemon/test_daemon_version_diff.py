"""What differs between two versions, over any rows that versions may have left."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_world import CHANGES, Factsyncd, turtle
from sqlmodel import delete

from daemon.beliefs import Holding
from daemon.show import show_version_diff
from daemon.version_diff import Row, version_diff
from store import UnknownVersion
from store.tables import Belief, Change, Cycle, Edit, GateMeasure, LedgerEntry, Version, VersionState

if TYPE_CHECKING:
    from store import Database

MOMENT = datetime(2022, 6, 1, tzinfo=UTC)
SLOTS = [(f"Q{number}", "P6") for number in range(1, 6)]

BELIEFS = st.dictionaries(
    st.sampled_from(SLOTS),
    st.tuples(st.sampled_from(Holding), st.sampled_from(["A", "B"]), st.sampled_from(["x", "y"])),
)
EDITS = st.sets(st.integers(1, len(SLOTS)))


def fill(database: Database, beliefs: list[dict], edits: list[set[int]]) -> None:
    """Versions 1 and 2 with these beliefs (kind, expected, answer) and edits, in the place of what is there."""
    with database.transaction() as session:
        for table in (Belief, LedgerEntry, Edit, Change, GateMeasure, Version, Cycle):
            session.exec(delete(table))
        session.add(Cycle(id=1))
        session.flush()
        for number in (0, 1, 2):
            session.add(
                Version(
                    id=number, parent_id=number - 1 if number else None,
                    state=VersionState.PROMOTED if number == 2 else VersionState.RETIRED, base_digest="b",
                    settings_digest="s",
                )
            )  # fmt: skip
        for number, (qid, pid) in enumerate(SLOTS, 1):
            session.add(
                Change(
                    id=number, qid=qid, pid=pid, subject_label=f"Subject {number}", old_values=[], new_values=[],
                    revision=1, statement="", modified_at=MOMENT, cycle_id=1,
                )
            )  # fmt: skip
            session.flush()
            session.add(
                Edit(
                    id=number, change_id=number, qid=qid, pid=pid, prompt="{} is", subject=qid, target="T", former=None
                )
            )
        session.flush()
        for version, (believed, written) in enumerate(zip(beliefs, edits, strict=True), 1):
            for (qid, pid), (kind, expected, answer) in believed.items():
                session.add(
                    Belief(
                        version_id=version, qid=qid, pid=pid, belief=kind.value, expected=expected, former="F",
                        answer=answer, logprob_expected=-1.5,
                    )
                )  # fmt: skip
            session.add_all(LedgerEntry(version_id=version, edit_id=number) for number in written)


def said(belief: tuple[Holding, str, str]) -> tuple[object, ...]:
    kind, expected, answer = belief
    return kind, {Holding.HOLDS: expected, Holding.OTHER: answer}.get(kind)


@given(beliefs=st.tuples(BELIEFS, BELIEFS), edits=st.tuples(EDITS, EDITS))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_it_is_the_difference_and_the_same_backwards(
    database: Database, beliefs: tuple[dict, dict], edits: tuple[set[int], set[int]]
) -> None:
    fill(database, list(beliefs), list(edits))
    with database.read() as session:
        found, back, none = (version_diff(session, *pair) for pair in ((1, 2), (2, 1), (2, 2)))
    both = beliefs[0].keys() & beliefs[1].keys()
    changed = {slot for slot in both if said(beliefs[0][slot]) != said(beliefs[1][slot])}
    assert {(row["qid"], row["pid"]) for row in found["beliefs"]["changed"]} == changed
    assert found["beliefs"]["asked"] == {"before": len(beliefs[0]), "after": len(beliefs[1]), "both": len(both)}
    assert sum(row["facts"] for row in found["beliefs"]["kinds"]) == len(both)
    for row in found["beliefs"]["changed"]:
        slot = (row["qid"], row["pid"])
        assert (row["before"]["belief"], row["after"]["answer"]) == (beliefs[0][slot][0].value, beliefs[1][slot][2])
        assert row["subject"].startswith("Subject")
    assert {edit["id"] for edit in found["edits"]["added"]} == edits[1] - edits[0]
    assert {edit["id"] for edit in found["edits"]["removed"]} == edits[0] - edits[1]
    assert back["edits"] == {"added": found["edits"]["removed"], "removed": found["edits"]["added"]}
    swapped = [row | {"before": row["after"], "after": row["before"]} for row in back["beliefs"]["changed"]]
    assert swapped == found["beliefs"]["changed"]
    assert (none["beliefs"]["changed"], none["edits"]) == ([], {"added": [], "removed": []})


def measured(version: int, measure: str, against: str, candidate: float | None, reference: float | None) -> GateMeasure:
    return GateMeasure(
        version_id=version, measure=measure, against=against, candidate=candidate, reference=reference, threshold=0.1,
        n=9, verdict="pass", detail="",
    )  # fmt: skip


def gate(database: Database, *pair: int) -> dict[str, Row]:
    with database.read() as session:
        return {row["measure"]: row for row in version_diff(session, *pair)["gate"]}


def test_figures_stand_side_by_side_and_on_the_same_probes_where_there_were_any(database: Database) -> None:
    fill(database, [{}, {}], [set(), set()])
    with database.transaction() as session:
        session.add(measured(1, "control", "base", 0.9, 1.0))
        session.add(measured(2, "control", "base", 0.8, 0.99))
        session.add(measured(2, "control", "promoted", 0.8, 0.85))
        session.add(measured(2, "efficacy", "floor", 0.97, None))
        session.add(measured(2, "question", "floor", None, None))
    forward, back, base = gate(database, 1, 2), gate(database, 2, 1), gate(database, 0, 2)
    own = {"measure": "control", "before": 0.9, "after": 0.8}
    assert forward["control"] == own | {"same": {"before": 0.85, "after": 0.8}}
    assert forward["efficacy"] == {"measure": "efficacy", "before": None, "after": 0.97, "same": None}
    assert forward.keys() == {"control", "efficacy"}
    assert back["control"]["same"] == {"before": 0.8, "after": 0.85}
    assert base["control"] == {"measure": "control", "before": None, "after": 0.8,
                               "same": {"before": 0.99, "after": 0.8}}  # fmt: skip


def test_an_unknown_version_is_refused(database: Database) -> None:
    fill(database, [{}, {}], [set(), set()])
    with database.read() as session, pytest.raises(UnknownVersion):
        version_diff(session, 1, 9)


def test_a_person_sees_words_and_not_markup(database: Database, capsys: pytest.CaptureFixture[str]) -> None:
    fill(
        database,
        [{SLOTS[0]: (Holding.OUTDATED, "A", "F")}, {SLOTS[0]: (Holding.HOLDS, "[bold]A", "[bold]A")}],
        [set(), {1}],
    )
    with database.transaction() as session:
        session.add(measured(2, "perplexity", "base", 12.5, 12.0))
        found = version_diff(session, 1, 2)
    show_version_diff(found)
    shown = capsys.readouterr().out
    for words in ("v1 (retired, 0 edits) -> v2 (promoted, 1 edits)", "outdated", "[bold]A", "Subject 1", "12.50"):
        assert words in shown


def test_a_cycle_leaves_beliefs_of_both_versions(factsyncd: Factsyncd, ready: Path) -> None:
    """Real (tiny) models: the base was asked before the edits, the promoted version after them."""
    (ready.parent / "facts.ttl").write_text(turtle(after=True), "utf-8")
    assert factsyncd("once", "--json", "--config", ready).data["outcome"] == "promoted"
    found = factsyncd("versions", "--diff", 0, 1, "--json", "--config", ready).data
    asked = found["beliefs"]["asked"]
    assert asked["after"] == asked["both"] == asked["before"] >= len(CHANGES)
    added = {(edit["qid"], edit["pid"]) for edit in found["edits"]["added"]}
    assert len(added) == found["after"]["edits"] > 0
    assert found["edits"]["removed"] == []
    assert next(row for row in found["gate"] if row["measure"] == "perplexity")["same"] is not None
    (leader, *_) = factsyncd("why", "Q34", "P6", "--json", "--config", ready).data
    assert [belief["version_id"] for belief in leader["beliefs"]] == [0, 1]
    assert all(len(belief["rivals"]) == 3 for belief in leader["beliefs"])
    assert {belief["expected"] for belief in leader["beliefs"]} == {"Magda"}
    assert "log-probabilities: Magda -" in factsyncd("why", "Q34", "P6", "--config", ready).output
    shown = factsyncd("versions", "--diff", 0, 1, "--config", ready).output
    assert "v0 (retired, 0 edits) -> v1 (promoted," in shown
    # What was asked once is not asked again.
    assert factsyncd("once", "--json", "--config", ready).data["outcome"] == "nothing"
    assert factsyncd("versions", "--diff", 0, 1, "--json", "--config", ready).data == found
    refused = factsyncd("versions", "--diff", 0, 7, "--config", ready)
    assert (refused.code, refused.output, len(refused.error_lines)) == (1, "", 1)
