"""How editing quality changes with the number of facts, all at once and over sequential batches.

usage: scaling.py [--sizes 1,10,100,500,1000] [--strategies ledger,sequential,null_space] [--batches 10] [--json]

Needs CounterFact records and WikiText-2 (--data DIRECTORY: counterfact_*.jsonl.gz and wikitext2/{train,valid}.txt.gz).
Every row is solved from the base with the settings shipped for it; --set NAME=VALUE changes one of them.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from measures import SHARED, WORK, base_model, edited, file_windows, measures, records

from editor import LanguageModel, Memit, MemitSettings, TextSource, ValueCache, prepare, settings_for

PROBED_FACTS = 120
ORDINARY_TOKENS = 20_000


def main() -> None:
    """Print one row per size and strategy."""
    arguments = _arguments()
    if not (arguments.data / "counterfact_full.jsonl.gz").exists():
        sys.exit(f"no CounterFact in {arguments.data}: give its directory with --data")
    model = base_model()
    overrides = dict(_setting(text) for text in arguments.set)
    sizes = [int(size) for size in arguments.sizes.split(",")]
    facts = records(arguments.data, max(sizes))
    ordinary = file_windows(model, arguments.data, ORDINARY_TOKENS)
    rows: list[dict[str, Any]] = []
    for size in sizes:
        probed = facts[: min(size, arguments.probed)]
        if size in {sizes[0], sizes[-1]} or size <= arguments.probed:
            rows.append({"facts": size, "strategy": "base", "batches": 0, **measures(model, probed, ordinary)})
            _show(rows[-1], arguments.json)
        for strategy in arguments.strategies.split(","):
            # All facts at once are the same ledger however they came, so batches say nothing about it.
            batches = 1 if strategy == "ledger" or size < arguments.batches else arguments.batches
            settings = settings_for(model.model.config, overrides | {"strategy": strategy})
            rows.append({"facts": size, "strategy": strategy, "batches": batches})
            rows[-1] |= _row(model, settings, facts[:size], batches, probed, ordinary, arguments.data)
            _show(rows[-1], arguments.json)
    if arguments.json:
        print(json.dumps({"settings": overrides, "rows": rows}))


def _row(
    model: LanguageModel,
    settings: MemitSettings,
    facts: list[Any],
    batches: int,
    probed: list[Any],
    ordinary: list[list[int]],
    data: Path,
) -> dict[str, Any]:
    text = TextSource(kind="file", path=data / "wikitext2" / "train.txt.gz")
    preparation = prepare(model, settings, text, WORK / "preparation")
    memit = Memit(model, settings, preparation, ValueCache(WORK / "values"))
    requests = [fact.request for fact in facts]
    started = time.perf_counter()
    memit.values(requests)
    optimised = time.perf_counter()
    size = -(-len(requests) // batches)
    update = memit.update([requests[start : start + size] for start in range(0, len(requests), size)])
    solved = time.perf_counter()
    with edited(model, update.tensors):
        measured = measures(model, probed, ordinary)
    return {
        **measured,
        "load": round(update.fit.load, 3),
        "unwritten": round(update.fit.unwritten, 3),
        "seconds_values": round(optimised - started, 1),
        "seconds_solve": round(solved - optimised, 1),
    }


def _show(row: dict[str, Any], as_json: bool) -> None:
    stream = sys.stderr if as_json else sys.stdout
    print("  ".join(f"{name} {value}" for name, value in row.items()), file=stream, flush=True)


def _setting(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="1,10,100,500,1000", help="numbers of facts")
    parser.add_argument("--strategies", default="ledger,sequential,null_space")
    parser.add_argument("--batches", type=int, default=10, help="sequential batches")
    parser.add_argument("--probed", type=int, default=PROBED_FACTS, help="facts whose prompts are scored")
    parser.add_argument("--data", type=Path, default=SHARED)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="change a MEMIT setting")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    return parser.parse_args()


if __name__ == "__main__":
    main()
