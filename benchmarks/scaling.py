"""How editing quality changes with the number of facts, all at once and over sequential batches.

usage: scaling.py [--sizes 1,10,100,500,1000] [--strategies ledger,sequential,null_space] [--batches 10] [--json]

Needs CounterFact records and WikiText-2 (--data DIRECTORY: counterfact_*.jsonl.gz and wikitext2/{train,valid}.txt.gz).
Every row is solved from the base with the settings shipped for it; --set NAME=VALUE changes one of them.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from measures import SHARED, WORK, Record, base_model, edited, file_windows, measures, records

from editor import LanguageModel, Memit, TextSource, ValueCache, prepare, settings_for

if TYPE_CHECKING:
    from collections.abc import Sequence

PROBED_FACTS = 120
ORDINARY_TOKENS = 20_000


def main() -> None:
    """Print one row per size and strategy."""
    arguments = _arguments()
    if not (arguments.data / "counterfact_full.jsonl.gz").exists():
        sys.exit(f"no CounterFact in {arguments.data}: give its directory with --data")
    model = base_model()
    overrides = dict(_setting(text) for text in arguments.set)
    sizes = sorted(int(size) for size in arguments.sizes.split(","))
    facts = records(arguments.data, max(sizes))
    ordinary = file_windows(model, arguments.data, ORDINARY_TOKENS)
    rows: list[dict[str, Any]] = []

    def add(row: dict[str, Any]) -> None:
        rows.append(row)
        line = "  ".join(f"{name} {value}" for name, value in row.items())
        print(line, file=sys.stderr if arguments.json else sys.stdout, flush=True)

    with tempfile.TemporaryDirectory(dir=WORK) as directory:
        cache = Path(directory)
        for size in sizes:
            probed = facts[: min(size, arguments.probed)]
            if len(probed) == size or size == min(n for n in sizes if n > arguments.probed):
                add({"facts": size, "strategy": "base", "batches": 0, **measures(model, probed, ordinary)})
            for strategy in arguments.strategies.split(","):
                # All facts at once are the same ledger however they came, so batches say nothing about it.
                batches = 1 if strategy == "ledger" or size < arguments.batches else arguments.batches
                memit = _memit(model, overrides | {"strategy": strategy}, arguments.data, cache)
                row = {"facts": size, "strategy": strategy, "batches": batches}
                add(row | _row(model, memit, facts[:size], batches, probed, ordinary))
        retracted = {
            size: _retracted(model, overrides, facts[:size], arguments.data, cache) for size in sizes if size == 100
        }
    if arguments.json:
        print(json.dumps({"settings": overrides, "rows": rows, "retraction_equal": retracted}))
    else:
        print("removing half of the facts gives the bits of never having written them:", retracted)


def _memit(model: LanguageModel, overrides: dict[str, Any], data: Path, cache: Path) -> Memit:
    settings = settings_for(model.model.config, overrides)
    text = TextSource(kind="file", path=data / "wikitext2" / "train.txt.gz")
    return Memit(model, settings, prepare(model, settings, text, WORK / "preparation"), ValueCache(cache))


def _row(
    model: LanguageModel,
    memit: Memit,
    facts: Sequence[Record],
    batches: int,
    probed: Sequence[Record],
    ordinary: list[list[int]],
) -> dict[str, Any]:
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


def _retracted(
    model: LanguageModel, overrides: dict[str, Any], facts: Sequence[Record], data: Path, cache: Path
) -> bool:
    """Whether the first half alone, after all were written, has the bits of a run that never saw the other half."""
    kept = [fact.request for fact in facts[: len(facts) // 2]]
    after = _memit(model, overrides, data, cache).update([kept]).tensors
    with tempfile.TemporaryDirectory(dir=WORK) as directory:
        never = _memit(model, overrides, data, Path(directory)).update([kept]).tensors
    return all(torch.equal(after[name], never[name]) for name in never)


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
