"""Editing speed against plain serial MEMIT, in one run on the same facts.

usage: speed.py [--facts N] [--serial-facts N] [--steps N] [--data DIRECTORY] [--json]

ratio_same_settings   facts per second of value vectors, same contexts and steps, over the serial form's
ratio_defaults        the same with the settings shipped for the base, over the serial form's
gemm_share            share of the machine's measured matrix-multiply peak, in the precision that is used
insert_ratio          weight updates from given value vectors, over the serial form's
probe_ratio           scoring (prompt, answer) pairs, over one full pass a pair
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from measures import SHARED, WORK, Record, base_model, edited, file_windows, measures, records
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from editor import EditRequest, LanguageModel, Memit, MemitSettings, TextSource, ValueCache, fill, prepare, scores
from editor.insertion import Batch, Insertion
from editor.precision import chosen_precision
from editor.requests import probe_row
from editor.settings import settings_for
from editor.values import ValueOptimiser

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "editor"))

import serial_memit as serial

# With the essence prompt seven sequences a fact.
CONTEXTS = (
    "{}", "The weather was mild that year. {}", "Because the road was closed, we walked. {}",
    "Therefore the council met again. {}", "I read it in the paper. {}", "You may have heard. {}",
)  # fmt: skip
LAYERS = (5, 6, 7, 8, 9)
NAIVE_PAIRS = 60


def main() -> None:
    """Time everything and print the ratios."""
    arguments = _arguments()
    if not (arguments.data / "counterfact_full.jsonl.gz").exists():
        sys.exit(f"no CounterFact in {arguments.data}: give its directory with --data")
    model = base_model()
    facts = records(arguments.data, arguments.facts)
    result: dict[str, Any] = {"facts": len(facts), "steps": arguments.steps, "threads": torch.get_num_threads()}
    requests = [fact.request for fact in facts]
    parts = (
        lambda: _probing(model, facts),
        lambda: _insertion(model, requests),
        lambda: _values(model, facts, arguments),
    )
    for part in parts:
        measured = part()
        result |= measured
        for name, value in measured.items():
            print(f"{name:28}{value}", file=sys.stderr if arguments.json else sys.stdout, flush=True)
    if arguments.json:
        print(json.dumps(result))


def _values(model: LanguageModel, facts: Sequence[Record], arguments: argparse.Namespace) -> dict[str, Any]:
    """Value vectors: ours and the serial form's, and how well either is written."""
    requests = [fact.request for fact in facts]
    # No early stop on either side: the same steps for every fact.
    settings = MemitSettings(layers=LAYERS, steps=arguments.steps, loss_floor=0.0, covariance_weight=2000.0)
    oracle = serial.SerialSettings(layers=LAYERS, steps=arguments.steps, loss_floor=0.0, mom2_weight=2000.0)
    preparation = prepare(model, settings, _text(arguments.data), WORK / "preparation")
    ours, seconds = _optimised(model, settings, requests)
    few = requests[: arguments.serial_facts]
    theirs, serial_seconds = _timed(
        lambda: torch.stack(
            [serial.value_vector(model.model, model.tokenizer, _plain(fact), oracle, CONTEXTS) for fact in few]
        )
    )
    ordinary = file_windows(model, arguments.data, 4000)
    quality = []
    for vectors in (ours[: len(few)], theirs):
        insertion = Insertion(model, settings, CONTEXTS, preparation.covariance)
        updates, _ = insertion([Batch(few, vectors)])
        tensors = {model.architecture.weight_name(at): model.architecture.as_stored(u) for at, u in updates.items()}
        with edited(model, tensors):
            quality.append(measures(model, facts[: len(few)], ordinary, generations=4))
    serial_rate = len(few) / serial_seconds
    default_rate = _default_rate(model, requests, arguments.data)
    return {
        "precision": chosen_precision(model, settings.precision),
        "serial_facts_per_second": serial_rate,
        "facts_per_second": len(facts) / seconds,
        "ratio_same_settings": len(facts) / seconds / serial_rate,
        "S": quality[0]["S"],
        "serial_S": quality[1]["S"],
        "worst_relative_difference": float(((ours[: len(few)] - theirs).norm(dim=1) / theirs.norm(dim=1)).max()),
        "default_facts_per_second": default_rate,
        "ratio_defaults": default_rate / serial_rate,
        "gemm_share": _flops(model, settings, requests) / seconds / _peak(model, settings),
    }


def _optimised(
    model: LanguageModel, settings: MemitSettings, requests: Sequence[EditRequest]
) -> tuple[torch.Tensor, float]:
    """Value vectors batch by batch, as the service makes them, and the seconds that took."""
    ValueOptimiser(model, settings, CONTEXTS)(requests[:2])  # the first products of a process are slow

    def run() -> torch.Tensor:
        optimiser = ValueOptimiser(model, settings, CONTEXTS)
        return torch.cat([optimiser(requests[start : start + 32]) for start in range(0, len(requests), 32)])

    return _timed(run)


def _default_rate(model: LanguageModel, requests: Sequence[EditRequest], data: Path) -> float:
    """Facts per second with the shipped settings; the preparation is done once per base and not counted."""
    settings = settings_for(model.model.config, {})
    preparation = prepare(model, settings, _text(data), WORK / "preparation")
    cache = ValueCache(WORK / f"values-{time.time_ns()}")
    memit = Memit(model, settings, preparation, cache)
    return len(requests) / _timed(lambda: memit.values(requests))[1]


class _Products(TorchDispatchMode):
    """Counts the floating-point operations of products. FlopCounterMode cannot be used under ``autograd.grad``."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.total += count(*args, **(kwargs or {}), out_val=out)
        return out


def _flops(model: LanguageModel, settings: MemitSettings, requests: Sequence[EditRequest]) -> float:
    """Floating-point operations of a run's products: what is done once, and every step the same again."""
    counted = []
    for steps in (2, 3):
        with _Products() as counter:
            _optimised_quietly(model, settings.model_copy(update={"steps": steps}), requests)
        counted.append(counter.total)
    return float(counted[0] + (settings.steps - 2) * (counted[1] - counted[0]))


def _optimised_quietly(model: LanguageModel, settings: MemitSettings, requests: Sequence[EditRequest]) -> None:
    optimiser = ValueOptimiser(model, settings, CONTEXTS)
    for start in range(0, len(requests), 32):
        optimiser(requests[start : start + 32])


def _peak(model: LanguageModel, settings: MemitSettings) -> float:
    """Floating-point operations per second of a large product."""
    half = chosen_precision(model, settings.precision) == "bfloat16"
    dtype = torch.bfloat16 if half else model.model.dtype
    size = 2048
    left, right = (torch.randn(size, size, device=model.device).to(dtype) for _ in range(2))
    best = min(_timed(lambda: (left @ right).sum().item())[1] for _ in range(8))
    return 2.0 * size**3 / best


def _insertion(model: LanguageModel, requests: Sequence[EditRequest]) -> dict[str, float]:
    """Weight updates of given value vectors, published form."""
    settings = MemitSettings(layers=LAYERS, covariance_weight=2000.0)
    oracle = serial.SerialSettings(layers=LAYERS, mom2_weight=2000.0)
    width = model.model.config.intermediate_size
    moments = {layer: torch.eye(width, dtype=torch.float64) for layer in LAYERS}
    values = torch.randn(len(requests), model.model.config.hidden_size)
    insertion = Insertion(model, settings, CONTEXTS, moments)
    insertion([Batch(requests[:2], values[:2])])
    (ours, _), seconds = _timed(lambda: insertion([Batch(requests, values)]))
    plain = [_plain(request) for request in requests]
    theirs, serial_seconds = _timed(
        lambda: serial.update(model.model, model.tokenizer, plain, oracle, CONTEXTS, moments, values)
    )
    worst = max(float((ours[at] - theirs[at]).norm() / theirs[at].norm()) for at in LAYERS)
    return {"insert_ratio": serial_seconds / seconds, "insert_relative_difference": worst}


def _probing(model: LanguageModel, facts: Sequence[Record]) -> dict[str, float]:
    """Both answers to every prompt of some facts."""
    pairs = [
        (prompt, answer)
        for fact in facts[:16]
        for prompt in (
            fill(fact.request.prompt, fact.request.subject),
            *fact.paraphrases,
            *(p for p, _ in fact.neighbours),
        )
        for answer in (fact.request.target, fact.old)
    ]
    scores(model, pairs[:8])
    seconds = _timed(lambda: scores(model, pairs))[1] / len(pairs)
    some = pairs[:: max(1, len(pairs) // NAIVE_PAIRS)]
    return {"probe_ratio": _timed(lambda: _naive_scores(model, some))[1] / len(some) / seconds}


@torch.no_grad()
def _naive_scores(model: LanguageModel, pairs: Sequence[tuple[str, str]]) -> list[float]:
    """One full pass a pair, logits everywhere."""
    result = []
    for prompt, answer in pairs:
        row = probe_row(model.tokenizer, prompt, answer)
        ids = torch.tensor([row.ids], device=model.device)
        log_probs = model.model(input_ids=ids, use_cache=False).logits.float().log_softmax(-1)
        places = torch.arange(row.target, len(row.ids), device=ids.device)
        result.append(float(log_probs[0, places - 1, ids[0, places]].sum()))
    return result


def _plain(request: EditRequest) -> serial.SerialRequest:
    return serial.SerialRequest(request.prompt, request.subject, request.target)


def _text(data: Path) -> TextSource:
    return TextSource(kind="file", path=data / "wikitext2" / "train.txt.gz")


def _timed(run: Callable[[], Any]) -> tuple[Any, float]:
    started = time.perf_counter()
    result = run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result, time.perf_counter() - started


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--facts", type=int, default=96)
    parser.add_argument("--serial-facts", type=int, default=8, help="facts that the serial form is timed on")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--data", type=Path, default=SHARED)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    return parser.parse_args()


if __name__ == "__main__":
    main()
