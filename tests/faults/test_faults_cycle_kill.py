"""Promises 1 and 4 over whole cycles: killed anywhere, stopped by a signal or rejected, nothing is lost or doubled."""

from __future__ import annotations

import runpy
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from small_world import CHANGES, COUNTRIES, IMPOSSIBLE, LENIENT, NEW_HEADS, Factsyncd, environment
from sqlmodel import select

from store import ArtifactStore, open_database
from store.tables import (
    Change,
    Cycle,
    Edit,
    GateMeasure,
    LedgerEntry,
    ProbeResult,
    Publication,
    Quarantine,
    SourceCursor,
    Version,
)

if TYPE_CHECKING:
    from collections.abc import Callable

KILL_AT = Path(__file__).parent / "children" / "kill_at.py"
POINTS = list(runpy.run_path(str(KILL_AT))["POINTS"])
ESSENTIAL = {
    "in a page of the pull",
    "in the batch before its commit",
    "after the first value vectors",
    "before the seal",
    "after the seal",
    "in validate with the model loaded",
    "in promote before its commit",
    "before the link's swap",
    "after the link's swap",
}
"""The others, some on the same paths, take as long again."""
assert set(POINTS) >= ESSENTIAL
WRITTEN = {(qid, "P6", head) for qid, head in CHANGES.items()} | {
    (NEW_HEADS[qid], "^P6", COUNTRIES[qid][0]) for qid in CHANGES
}
"""Slot and target of every edit: each fact in both directions."""
COLUMNS: dict[type, tuple[str, ...]] = {
    Version: ("id", "parent_id", "state", "base_digest", "settings_digest", "digest", "path", "reason"),
    LedgerEntry: ("version_id", "edit_id"),
    Edit: ("id", "change_id", "qid", "pid", "subject", "target", "former"),
    Change: ("id", "qid", "pid", "old_values", "new_values", "revision", "state", "cycle_id", "origin_id", "reason"),
    Publication: ("version_id", "target", "state", "attempts"),
    Quarantine: ("change_id", "version_id"),
    GateMeasure: ("version_id", "measure", "against", "candidate", "reference", "n", "verdict"),
    ProbeResult: ("version_id", "kind", "qid", "pid", "answer", "correct"),
    Cycle: ("id", "phase", "outcome", "candidate_id", "detail"),
    SourceCursor: ("source", "modified_at", "revision"),
}


def recorded(config: Path) -> dict[str, Any]:
    """What must be the same whatever happened on the way: rows without times and serial numbers, and the disk."""
    directory = config.parent / "state"
    found: dict[str, Any] = {}
    with open_database(directory / "factsyncd.sqlite") as database, database.read() as session:
        for table, columns in COLUMNS.items():
            rows = [tuple(getattr(row, column) for column in columns) for row in session.exec(select(table))]
            found[table.__name__] = sorted(rows, key=repr)
    found["current"] = (directory / "current").readlink()
    found["versions"] = sorted(path.name for path in (directory / "versions").glob("v*"))
    return found


def leftovers(config: Path) -> list[str]:
    state = config.parent / "state"
    return [path.name for path in [*(state / "versions" / ".staging").iterdir(), *state.glob(".*.new")]]


def promoted(config: Path) -> Version:
    with open_database(config.parent / "state" / "factsyncd.sqlite") as database, database.read() as session:
        return session.exec(select(Version).where(Version.state == "promoted")).one()


def once(factsyncd: Factsyncd, config: Path, code: int = 0, **options: Any) -> dict[str, Any]:
    finished = factsyncd("once", "--json", "--config", config, **options)
    assert finished.code == code, finished.errors
    assert finished.errors == ""
    return dict(finished.data)


@pytest.fixture(scope="module")
def undisturbed(world: Any, factsyncd: Factsyncd, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    config = world.copy(tmp_path_factory.mktemp("undisturbed"))
    cycle = once(factsyncd, config)
    assert (cycle["outcome"], cycle["counts"]["batched"]) == ("promoted", 8)
    return recorded(config)


def test_an_undisturbed_cycle_writes_every_change(undisturbed: dict[str, Any]) -> None:
    assert {(row[2], row[3], row[5]) for row in undisturbed["Edit"]} == WRITTEN
    # Those who left office were told of by no edit that could be withdrawn.
    assert Counter(row[6] for row in undisturbed["Change"]) == {"live": 8, "uneditable": 4}
    assert undisturbed["current"] == Path("versions/v1")


@pytest.mark.parametrize(
    "point", [point if point in ESSENTIAL else pytest.param(point, marks=pytest.mark.slow) for point in POINTS]
)
def test_a_killed_cycle_ends_as_if_nothing_had_happened(
    factsyncd: Factsyncd, state: Callable[..., Path], undisturbed: dict[str, Any], world: Any, point: str
) -> None:
    config = state()
    killed = factsyncd("once", "--config", config, before=(KILL_AT, point))
    assert killed.code == -signal.SIGKILL, f"the kill was not staged: {killed}"

    # Whoever serves or reads meanwhile finds a whole version.
    link = config.parent / "state" / "current"
    ArtifactStore(config.parent / "state" / "versions").verify(int(link.resolve().name.removeprefix("v")))
    assert factsyncd("status", "--config", config).code == 0

    once(factsyncd, config)
    assert recorded(config) == undisturbed
    assert leftovers(config) == []
    assert factsyncd("verify", "--json", "--config", config).data == {"verified": [0, 1]}


@pytest.mark.slow
def test_a_cycle_killed_at_every_point_in_turn_still_ends_well(
    factsyncd: Factsyncd, state: Callable[..., Path], undisturbed: dict[str, Any]
) -> None:
    config = state()
    for point in POINTS:
        killed = factsyncd("once", "--config", config, before=(KILL_AT, point))
        # What an earlier start has finished is not reached again.
        assert killed.code in {-signal.SIGKILL, 0}
    once(factsyncd, config)
    expected = {key: value for key, value in undisturbed.items() if key != "Cycle"}
    assert {key: value for key, value in recorded(config).items() if key != "Cycle"} == expected


def test_the_first_start_can_be_killed_while_it_writes_the_base(
    factsyncd: Factsyncd, world: Any, tmp_path: Path
) -> None:
    from small_world import write_config

    config = write_config(tmp_path / "factsyncd.toml", world.model, world.text, world.snapshot)
    for point in ("before the seal", "after the seal", "before the link's swap"):
        assert factsyncd("once", "--config", config, before=(KILL_AT, point)).code == -signal.SIGKILL
    assert once(factsyncd, config)["outcome"] == "nothing"
    assert leftovers(config) == []
    assert factsyncd("verify", "--json", "--config", config).data == {"verified": [0]}


def test_a_second_cycle_finds_nothing_and_makes_no_version(
    factsyncd: Factsyncd, state: Callable[..., Path], undisturbed: dict[str, Any]
) -> None:
    config = state()
    once(factsyncd, config)
    assert once(factsyncd, config)["outcome"] == "nothing"
    after = recorded(config)
    for name in ("Version", "LedgerEntry", "Edit", "Change", "Publication", "versions", "current"):
        assert after[name] == undisturbed[name]


def test_a_damaged_candidate_is_solved_again(
    factsyncd: Factsyncd, state: Callable[..., Path], undisturbed: dict[str, Any]
) -> None:
    config = state()
    killed = factsyncd("once", "--config", config, before=(KILL_AT, "in validate with the model loaded"))
    assert killed.code == -signal.SIGKILL
    weights = config.parent / "state" / "versions" / "v1" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    refused = factsyncd("once", "--config", config)
    assert refused.code == 1
    assert "version 1 is corrupt" in refused.errors
    once(factsyncd, config)
    assert recorded(config) == undisturbed


def start_service(config: Path, **variables: str) -> tuple[subprocess.Popen[str], list[str]]:
    script = Path(sys.executable).parent / "factsyncd"
    process = subprocess.Popen(
        [script, "run", "--config", config],
        stderr=subprocess.PIPE, text=True, env=environment() | {"FACTSYNCD_LOG__LEVEL": "info"} | variables,
    )  # fmt: skip
    lines: list[str] = []

    def keep() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            lines.append(line)

    threading.Thread(target=keep, daemon=True).start()
    return process, lines


def wait_for(words: str, lines: list[str], process: subprocess.Popen[str], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not any(words in line for line in lines):
        assert process.poll() is None, "".join(lines)
        assert time.monotonic() < end, "".join(lines)
        time.sleep(0.05)


def test_a_stopped_service_ends_soon_and_the_next_run_completes(
    factsyncd: Factsyncd, state: Callable[..., Path], undisturbed: dict[str, Any]
) -> None:
    config = state()
    # So many steps that the stop comes in the middle of the edit; an operator corrects them afterwards.
    process, lines = start_service(config, FACTSYNCD_EDIT__STEPS="100000", FACTSYNCD_EDIT__LOSS_FLOOR="0")
    try:
        wait_for("phase=edit", lines, process)
        time.sleep(1)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
        assert time.monotonic() - began < 10
    finally:
        process.kill()
    assert any("interrupted" in line for line in lines), "".join(lines)
    assert not any("Traceback" in line for line in lines)
    once(factsyncd, config)
    assert recorded(config) == undisturbed


@pytest.mark.slow
def test_a_running_service_completes_a_cycle_by_itself(state: Callable[..., Path], undisturbed: dict[str, Any]) -> None:
    config = state()
    process, lines = start_service(config)
    try:
        wait_for("cycle finished", lines, process)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
    assert recorded(config) == undisturbed


def test_a_rejected_batch_is_kept_out_until_it_is_released(
    factsyncd: Factsyncd, state: Callable[..., Path], undisturbed: dict[str, Any]
) -> None:
    config = state(gate=IMPOSSIBLE)
    assert once(factsyncd, config, code=3)["outcome"] == "rejected"
    assert promoted(config).id == 0
    rejected = recorded(config)
    assert rejected["current"] == Path("versions/v0")
    assert {row[6] for row in rejected["Change"]} == {"quarantined", "uneditable"}
    kept = factsyncd("quarantine", "list", "--json", "--config", config).data
    assert {row["qid"] for row in kept} == {slot[0] for slot in WRITTEN}
    assert all("efficacy" in row["reason"] for row in kept)
    assert once(factsyncd, config)["outcome"] == "nothing", "what is kept out is not tried again by itself"

    config.write_text(config.read_text("utf-8").replace(IMPOSSIBLE, LENIENT), "utf-8")
    assert "8 changes" in factsyncd("quarantine", "release", "--config", config).output
    assert once(factsyncd, config)["outcome"] == "promoted"
    after = recorded(config)
    assert {row[6] for row in after["Change"]} == {"live", "uneditable"}
    assert after["current"] == Path("versions/v2")
    assert after["Edit"] == undisturbed["Edit"], "the same edits, written once"
    # A version is a function of its ledger: the same facts give the same bits under another number.
    first = {row[0]: row for row in undisturbed["Version"]}[1]
    second = {row[0]: row for row in after["Version"]}[2]
    weights = [
        (config.parent / "state" / "versions" / name / "model.safetensors").read_bytes() for name in ("v1", "v2")
    ]
    assert weights[0] == weights[1]
    assert first[4] == second[4]


def test_a_held_candidate_waits_for_the_operator(factsyncd: Factsyncd, state: Callable[..., Path]) -> None:
    config = state(gate=LENIENT.replace("minimum_probes = 1", "minimum_probes = 1000"))
    assert once(factsyncd, config, code=4)["outcome"] == "held"
    assert once(factsyncd, config, code=4)["outcome"] == "held", "nothing new is begun meanwhile"
    assert recorded(config)["versions"] == ["v0", "v1"]
    assert factsyncd("approve", "1", "--config", config).code == 0
    assert {row[6] for row in recorded(config)["Change"]} == {"live", "uneditable"}
    assert recorded(config)["current"] == Path("versions/v1")
    assert once(factsyncd, config)["outcome"] == "nothing"
