"""A batch of 60 real changes of which 5 are bad, through the whole service on SmolLM2.

usage: bad_batch.py [--good N] [--data DIRECTORY] [--state DIRECTORY] [--json]

good_promoted      of the good changes, written in the version that is promoted at the end of the cycle
bad_quarantined    of the planted ones, kept out, each with its reason
trials             candidates that the cycle made
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from changing_world import Change, begin, changes, move_on, stable
from measures import SHARED, WORK
from sqlmodel import select

from daemon.cycle import run_cycle
from store.ledger import ledger_edits, promoted
from store.tables import Change as Recorded
from store.tables import Cycle, Quarantine

UNCHANGED = 250
"""Slots of the changing properties that stay as they are: the neighbours."""


def bad_changes() -> list[Change]:
    """Changes that must not be written."""

    def bad(number: int, label: str, new: str) -> Change:
        return Change(
            f"Q{990_000_000 + number}", label, "P1308", "Q23", "George Washington", f"Q{991_000_000 + number}", new
        )

    return [
        bad(1, "Minister", "Olaf Scholz"),  # a subject that is part of its neighbours' names
        bad(2, "the", "Angela Merkel"),  # a stop word
        bad(3, "Warden of the Cinque Ports", "{{}}" * 3),  # a template's braces
        bad(4, "Captain of the Port of Hamburg", "and so on " * 11),  # no answer but a text
        bad(5, "Prefect of the Vaucluse", ""),  # nothing
    ]


def main() -> None:
    """Run the cycle and count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--good", type=int, default=55, help="good changes")
    parser.add_argument("--data", type=Path, default=SHARED)
    parser.add_argument("--state", type=Path, help="keep the state there")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    arguments = parser.parse_args()
    if not (arguments.data / "temporal_changes.jsonl.gz").exists():
        sys.exit(f"no temporal_changes.jsonl.gz in {arguments.data}: give its directory with --data")
    WORK.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=WORK) as scratch:
        result = _run(arguments.state or Path(scratch), arguments.data, arguments.good)
    for name, value in result.items():
        print(name, value, file=sys.stderr)
    if arguments.json:
        print(json.dumps(result))


def _run(directory: Path, data: Path, good: int) -> dict[str, Any]:
    bad = bad_changes()
    real = changes(data, good + UNCHANGED)
    taken, stay = real[:good], [replace(fact, new=fact.old, new_label=fact.old_label) for fact in real[good:]]
    runtime, world = begin(directory, data, [*taken, *bad, *stay, *stable(data)])
    run_cycle(runtime)
    for change in [*taken, *bad]:
        world.set(change.qid, change.label, change.pid, change.new, change.new_label)
    move_on(directory, world)
    started = time.perf_counter()
    cycle: Cycle = run_cycle(runtime)
    seconds = time.perf_counter() - started
    planted = {change.qid for change in bad}
    with runtime.database.read() as session:
        present = promoted(session)
        assert present is not None
        live = {edit.qid for edit in ledger_edits(session, present.id)}
        known = {row.qid for row in session.exec(select(Recorded))}
        reasons = {row.qid: row.reason for row in session.exec(select(Quarantine))}
    wanted = {change.qid for change in taken}
    return {
        "outcome": None if cycle.outcome is None else cycle.outcome.value,
        "detail": cycle.detail,
        "seconds": round(seconds),
        "trials": cycle.counts.get("trials", 1),
        "good": len(wanted & known),
        "good_promoted": len(wanted & live),
        "good_quarantined": {qid: reasons[qid] for qid in wanted & set(reasons)},
        "bad": len(planted),
        "bad_promoted": sorted(planted & live),
        "bad_quarantined": {qid: reasons[qid] for qid in sorted(planted & set(reasons))},
    }


if __name__ == "__main__":
    main()
