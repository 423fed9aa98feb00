"""Peak memory of a value vector step at two sizes, each in a process of its own, against the formula.

usage: memory.py [--sizes 16,64] [--data DIRECTORY] [--json]

The formula and its coefficients are in editor/memory.py. Measured is the highest resident size over that before the
first step (Linux).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
from measures import SHARED, base_model, records

from editor import MemitSettings
from editor.requests import rewrite_rows
from editor.values import ValueOptimiser

CONTEXTS = ("{}", "The weather was mild that year. {}", "Because the road was closed, we walked. {}")


def main() -> None:
    """Print one row per size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="16,64", help="numbers of facts optimised together")
    parser.add_argument("--data", type=Path, default=SHARED)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not (arguments.data / "counterfact_full.jsonl.gz").exists():
        sys.exit(f"no CounterFact in {arguments.data}: give its directory with --data")
    if arguments.one:
        print(json.dumps(_measured(arguments.one, arguments.data)))
        return
    rows = []
    for size in arguments.sizes.split(","):
        command = [sys.executable, __file__, "--one", size, "--data", str(arguments.data)]
        # Otherwise the allocator keeps what it once had, which says nothing about what a step takes.
        environment = os.environ | {"MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_MMAP_THRESHOLD_": "65536"}
        out = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
        rows.append(json.loads(out.splitlines()[-1]))
        print(rows[-1], file=sys.stderr if arguments.json else sys.stdout)
    if arguments.json:
        print(json.dumps({"rows": rows}))


def _measured(size: int, data: Path) -> dict[str, float]:
    model = base_model()
    settings = MemitSettings(layers=(5, 6, 7, 8, 9), steps=4, loss_floor=0.0)
    requests = [record.request for record in records(data, size)]
    optimiser = ValueOptimiser(model, settings, CONTEXTS)
    optimiser(requests[:1])  # what a process loads once
    rows = [row for request in requests for row in rewrite_rows(model.tokenizer, CONTEXTS, request)]
    tokens = sum(len(row.ids) - row.subject for row in rows)
    predicted = optimiser.memory(requests).peak(tokens, size)
    before = psutil.Process().memory_info().rss
    Path("/proc/self/clear_refs").write_text("5", "ascii")  # forget the peak so far
    optimiser(requests)
    status = Path("/proc/self/status").read_text("ascii")
    peak = 1024 * int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])
    mib = 1 << 20
    return {
        "facts": size,
        "tokens": tokens,
        "predicted_MiB": round(predicted / mib),
        "measured_MiB": round((peak - before) / mib),
        "measured_over_predicted": round((peak - before) / predicted, 2),
    }


if __name__ == "__main__":
    main()
