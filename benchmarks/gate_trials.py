"""Trials of the gate: it has to promote what does no harm, and nothing else.

usage: gate_trials.py [--aa 40] [--sabotage 40] [--only KIND] [--workers 2] [--state DIRECTORY] [--json]

Candidates of the real SmolLM2-135M go through the daemon's own batch, edit, validate and promote, each on a copy of a
state with 43 real edits (trial_state.py): 40 without harm (nothing changes; accepted edits are withdrawn; they are
written again), and 40 that are sabotaged (trial_kinds.py). No two are asked the same probe set. Whatever is not
promoted has to name a reason: the measures that failed or did not decide, or the error.

The state is made once (some minutes); 80 trials then take about TIME on two cores.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING, Any

from measures import SHARED, WORK
from sqlmodel import select
from trial_kinds import NO_HARM, Step, harmless, sabotaged
from trial_state import TrialState, prepare

from daemon.batch import batch
from daemon.errors import DaemonError
from daemon.gate import Verdict
from daemon.promote import promote
from daemon.validate import validate
from editor import EditorError
from store import StoreError
from store.tables import Cycle, GateMeasure, Quarantine, Version, VersionState

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Row = dict[str, Any]


def main() -> None:
    """Print a row per trial, and what came of each kind."""
    arguments = _arguments()
    if not (arguments.data / "stable_facts.jsonl.gz").exists():
        sys.exit(f"no stable_facts.jsonl.gz in {arguments.data}: give its directory with --data")
    began = time.perf_counter()
    arguments.state.mkdir(parents=True, exist_ok=True)
    prepare(arguments.state, arguments.data.resolve())
    prepared = time.perf_counter() - began
    stream = sys.stderr if arguments.json else sys.stdout
    rows = []
    for row in _run(arguments):
        rows.append(row)
        print(_line(row), file=stream, flush=True)
    result = summary(rows) | {
        "seconds_preparing": round(prepared), "seconds": round(time.perf_counter() - began), "trials": rows,
    }  # fmt: skip
    if arguments.json:
        print(json.dumps(result))
    else:
        for kind in result["kinds"]:
            print(kind)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--aa", type=int, default=40, help="candidates without harm")
    parser.add_argument("--sabotage", type=int, default=40, help="sabotaged candidates")
    parser.add_argument("--only", default="", help="of the kinds that begin so")
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1), help="processes of one core each")
    parser.add_argument("--state", type=Path, default=WORK / "gate-trials", help="made where it is missing")
    parser.add_argument("--data", type=Path, default=SHARED)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    return parser.parse_args()


def _scenarios(aa: int, sabotage: int, only: str) -> list[list[Step]]:
    """Of one candidate, or of several that follow each other."""
    everything = [*harmless(aa), *sabotaged(sabotage)]
    return [scenario for scenario in everything if any(step.kind.startswith(only) for step in scenario)]


def _run(arguments: argparse.Namespace) -> Iterator[Row]:
    """The rows of all trials, as they end."""
    asked = (arguments.aa, arguments.sabotage, arguments.only)
    scenarios = _scenarios(*asked)
    # Threads of a process that has used torch do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory(dir=arguments.state) as directory,
        ProcessPoolExecutor(arguments.workers, mp_context=context) as workers,
    ):
        tasks = [
            workers.submit(_try, asked, number, arguments.state, Path(directory)) for number in range(len(scenarios))
        ]
        for task in as_completed(tasks):
            yield from task.result()


def _try(asked: tuple[int, int, str], number: int, prepared: Path, directory: Path) -> list[Row]:
    """One scenario on a copy of the state."""
    state = TrialState(prepared, directory / str(number), seed=number)
    rows = [{"trial": number, **tried(state, step)} for step in _scenarios(*asked)[number]]
    state.remove()
    return rows


def tried(state: TrialState, step: Step) -> Row:
    """What the daemon does with one candidate."""
    began = time.perf_counter()
    cycle_id = state.begin(step.changes(state))
    error, candidate = "", None
    try:
        batch(state.runtime, cycle_id)
        candidate = state.candidate(cycle_id)
        if candidate is not None:
            step.make(state, cycle_id, candidate)
            validate(state.runtime, cycle_id)
            promote(state.runtime, cycle_id)
    except (DaemonError, EditorError, StoreError) as raised:
        error = f"{type(raised).__name__}: {raised}"
    # The cycle may go on with other candidates; it is about this one.
    number = None if candidate is None else candidate.id
    row = {"kind": step.kind, "detail": step.detail, **_outcome(state, cycle_id, number, error)}
    return row | {"seconds": round(time.perf_counter() - began, 1)}


def _outcome(state: TrialState, cycle_id: int, version: int | None, error: str) -> Row:
    """Whether the candidate was promoted, and what else became of it, why."""
    with state.runtime.database.read() as session:
        cycle = session.exec(select(Cycle).where(Cycle.id == cycle_id)).one()
        kept_out = session.exec(select(Quarantine.reason)).all()
        measures = session.exec(select(GateMeasure).where(GateMeasure.version_id == version)).all()
        promoted = version is not None and session.get_one(Version, version).state == VersionState.PROMOTED
    if error:
        return {"promoted": False, "outcome": "error", "named": [error.split(":", 1)[0]], "reason": error}
    if version is None:
        return {"promoted": False, "outcome": "quarantined", "named": ["batch"], "reason": "; ".join({*kept_out})}
    failed = [each for each in measures if each.verdict == Verdict.FAIL.value]
    undecided = [each for each in measures if each.verdict == Verdict.INCONCLUSIVE.value]
    telling = failed or undecided
    return {
        "promoted": promoted,
        "outcome": "promoted" if promoted else "rejected" if failed else "held",
        "named": sorted({each.measure for each in telling}),
        "reason": "; ".join(each.detail for each in telling) or cycle.detail,
        "figures": {f"{each.measure} {each.against}": _short(each.candidate) for each in measures},
        "losses": {f"{each.measure} {each.against}": _short(each.loss) for each in measures if each.loss is not None},
    }


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Totals, and for each kind how many were promoted, how they ended otherwise and what was named."""
    kinds = []
    for kind in dict.fromkeys(row["kind"] for row in rows):
        mine = [row for row in rows if row["kind"] == kind]
        kinds.append(
            {
                "kind": kind,
                "count": len(mine),
                "promoted": sum(row["promoted"] for row in mine),
                "outcomes": dict(Counter(row["outcome"] for row in mine)),
                "named": dict(Counter(name for row in mine if not row["promoted"] for name in row["named"])),
                "reason": next((row["reason"] for row in mine if not row["promoted"]), ""),
            }
        )
    of_harmless = [row for row in rows if row["kind"] in NO_HARM]
    spoilt = [row for row in rows if row["kind"] not in NO_HARM]
    return {
        "aa_total": len(of_harmless),
        "aa_promoted": sum(row["promoted"] for row in of_harmless),
        "sabotage_total": len(spoilt),
        "sabotage_promoted": sum(row["promoted"] for row in spoilt),
        "kinds": kinds,
    }


def _short(figure: float | None) -> float | None:
    return None if figure is None else round(figure, 4)


def _line(row: Row) -> str:
    named = "" if row["promoted"] else f": {', '.join(row['named'])}"
    return f"{row['trial']:>3} {row['kind']} ({row['detail']}) {row['outcome']}{named} [{row['seconds']} s]"


if __name__ == "__main__":
    main()
