"""Calibration of SmolLM2-135M as if nobody had settings for it, against a sweep by hand.

usage: calibration.py [--sweep] [--facts N] [--data DIRECTORY] [--json]

The facts are static Wikidata facts (stable_facts.jsonl.gz) in the catalogue's wordings; most of them the model does not
know, and those are not used. With --sweep windows of one and of five layers up to 60 % of the depth and five strengths
are tried as well.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from measures import SHARED, WORK, base_model

from editor import KnownFact, LanguageModel, TextSource, ValueCache, calibrate, prepare
from editor.calibration import RECOMMENDED, window
from editor.trials import Trial, Trials, checked_settings, choose_task
from sources import load_catalogue


def main() -> None:
    """Print what was found, and with a sweep what there was to find."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweep", action="store_true", help="also sweep by hand (half an hour on two cores)")
    parser.add_argument("--facts", type=int, default=1500, help="facts the model is asked")
    parser.add_argument("--data", type=Path, default=SHARED)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    arguments = parser.parse_args()
    if not (arguments.data / "stable_facts.jsonl.gz").exists():
        sys.exit(f"no stable_facts.jsonl.gz in {arguments.data}: give its directory with --data")
    facts = _facts(arguments.data, arguments.facts)
    model = base_model()
    text = TextSource(kind="file", path=arguments.data / "wikitext2" / "train.txt.gz")
    started = time.perf_counter()
    stream = sys.stderr if arguments.json else sys.stdout

    def progress(stage: str, done: int, total: int) -> None:
        if stage == "calibration":
            print(f"{done}/{total} trials, {time.perf_counter() - started:.0f} s", file=sys.stderr)

    found = calibrate(model, facts, text, WORK / "preparation", progress=progress)
    for trial in sorted(found.trials, key=lambda trial: -trial.score):
        print(_row(trial), file=stream)
    result: dict[str, Any] = {"seconds": round(time.perf_counter() - started), "trials": len(found.trials)}
    result |= {"found": _row(found.chosen)}
    if arguments.sweep:
        optimum = max((_swept(model, facts, text, stream)), key=lambda trial: trial.score)
        result |= {"optimum": _row(optimum), "difference": round(optimum.score - found.chosen.score, 4)}
    print(json.dumps(result), file=sys.stdout)


def _swept(model: LanguageModel, facts: list[KnownFact], text: TextSource, stream: TextIO) -> list[Trial]:
    """Every third last layer, windows of one and of five layers, strengths over three decades."""
    tops = range(2, round(0.6 * model.depth), 3)
    shared = dict(RECOMMENDED)
    preparation = prepare(model, checked_settings(model, shared, tuple(range(tops[-1] + 1)), 1.0), text, WORK)
    attempt = Trials(model, choose_task(model, facts), shared, preparation, ValueCache(WORK / "preparation" / "values"))
    trials = []
    for top in tops:
        for width in (1, 5):
            for power in range(6, 19, 3):
                trials.append(attempt(window(top, width), 10 ** (power / 4)))
                print(_row(trials[-1]), file=stream, flush=True)
    return trials


def _facts(data: Path, wanted: int) -> list[KnownFact]:
    catalogue = load_catalogue()
    facts = []
    with gzip.open(data / "stable_facts.jsonl.gz", "rt", encoding="utf-8") as stream:
        for line in stream:
            row = json.loads(line)
            relation = catalogue.get(row["pid"])
            if relation is not None:
                facts.append(
                    KnownFact(
                        relation.pid, relation.prompt, row["subject"], row["object"], relation.paraphrases,
                        relation.variants,
                    )
                )  # fmt: skip
    return facts[:: max(1, len(facts) // wanted)]


def _row(trial: Trial) -> dict[str, Any]:
    shares = {
        name: round(getattr(trial, name), 3) for name in ("efficacy", "paraphrase", "neighbourhood", "reading", "score")
    }
    return {"layers": list(trial.layers), "covariance_weight": trial.covariance_weight} | shares


if __name__ == "__main__":
    main()
