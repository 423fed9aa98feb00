"""A batch of 60 real changes of which 5 are bad, through the whole service on SmolLM2.

usage: bad_batch.py [--good N] [--data DIRECTORY] [--state DIRECTORY] [--json]

good_promoted      of the good changes, written in the version that is promoted at the end of the cycle
bad_quarantined    of the planted ones, kept out, each with its reason
trials             candidates that the cycle made
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from measures import SHARED, WORK
from sqlmodel import select
from ten_cycles import open_state, turn
from world import Changed, Said, Value, World, changes, stable_facts

from store.ledger import ledger_edits, promoted
from store.tables import Change, Quarantine

FORMER = Value("Q23", "George Washington")


def bad_changes() -> list[Changed]:
    """Changes that must not be written."""

    def bad(number: int, subject: str, new: str) -> Changed:
        said = Said(f"Q{990_000_000 + number}", "P1308", subject, Value(f"Q{991_000_000 + number}", new))
        return Changed(said, FORMER, "2024-01-01")

    return [
        bad(1, "Minister", "Olaf Scholz"),  # a subject that is part of its neighbours' names
        bad(2, "the", "Angela Merkel"),  # a stop word
        bad(3, "Warden of the Cinque Ports", "{{}}" * 3),  # a template's braces
        bad(4, "Captain of the Port of Hamburg", ("and so on " * 11).strip()),  # no answer but a text
        bad(5, "Prefect of the Vaucluse", ""),  # nothing
    ]


def main() -> None:
    """Run the cycle and count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--good", type=int, default=55, help="good changes")
    parser.add_argument("--data", type=Path, default=SHARED)
    parser.add_argument("--state", type=Path, default=WORK / "bad-batch", help="begun anew")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    arguments = parser.parse_args()
    if not (arguments.data / "temporal_changes.jsonl.gz").exists():
        sys.exit(f"no temporal_changes.jsonl.gz in {arguments.data}: give its directory with --data")
    shutil.rmtree(arguments.state, ignore_errors=True)
    arguments.state.mkdir(parents=True)
    result = _run(arguments.state, arguments.data.resolve(), arguments.good)
    for name, value in result.items():
        print(name, value, file=sys.stderr if arguments.json else sys.stdout)
    if arguments.json:
        print(json.dumps(result))


def _run(directory: Path, data: Path, wanted: int) -> dict[str, Any]:
    bad = bad_changes()
    last = {change.slot: change for change in changes(data, 2 * wanted)}
    good = list(last.values())[:wanted]
    world = World(stable_facts(data), [[*good, *bad]])
    runtime = open_state(directory, data)
    turn(runtime, world, directory)  # the baseline: nothing is written
    world.advance()
    started = time.perf_counter()
    cycle = turn(runtime, world, directory)
    seconds = time.perf_counter() - started
    planted, wished = ({change.said.qid for change in some} for some in (bad, good))
    with runtime.database.read() as session:
        present = promoted(session)
        assert present is not None
        live = {edit.qid for edit in ledger_edits(session, present.id)}
        states = {row.qid: row.state.value for row in session.exec(select(Change))}
        reasons = {row.qid: row.reason for row in session.exec(select(Quarantine))}
    return {
        "outcome": None if cycle.outcome is None else cycle.outcome.value,
        "detail": cycle.detail,
        "seconds": round(seconds),
        "trials": cycle.counts.get("trials", 1),
        "good": len(wished & states.keys()),
        "good_promoted": len(wished & live),
        "good_known_before": sum(states.get(qid) == "held" for qid in wished),
        "good_quarantined": {qid: reasons[qid] for qid in sorted(wished & reasons.keys())},
        "bad": len(planted),
        "bad_promoted": sorted(planted & live),
        "bad_quarantined": {qid: reasons[qid] for qid in sorted(planted & reasons.keys())},
    }


if __name__ == "__main__":
    main()
