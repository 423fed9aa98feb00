"""Fluency: whether a model still writes varied text, or has begun to repeat itself."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

from editor.ordinary_text import sample
from editor.progress import Progress, silent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from editor.language_model import LanguageModel

LIKELIEST = 5
"""As in ROME, text is drawn from the likeliest next tokens only."""
BATCH = 32


def continuations(
    language_model: LanguageModel, prompts: Sequence[str], new_tokens: int, seed: int, progress: Progress = silent
) -> list[list[int]]:
    """What a model writes behind each prompt: up to ``new_tokens`` token ids, drawn with a fixed seed.

    The same model, prompts and seed on the same machine give the same tokens.
    """
    texts: list[list[int]] = []
    for start in range(0, len(prompts), BATCH):
        batch = prompts[start : start + BATCH]
        written = sample(language_model, batch, new_tokens, seed=seed + start, likeliest=LIKELIEST)
        lengths = [len(language_model.tokenizer(prompt)["input_ids"]) for prompt in batch]
        texts += [text[length:] for text, length in zip(written, lengths, strict=True)]
        progress("writing", len(texts), len(prompts))
    return texts


def ngram_entropy(tokens: Sequence[int]) -> float:
    """Entropy of bigrams and trigrams in bits, weighted 1 to 2 (the fluency of ROME, Meng et al. 2022)."""
    return (2 / 3 * _entropy(_ngrams(tokens, 2)) + 4 / 3 * _entropy(_ngrams(tokens, 3))) / 2


def repetition(tokens: Sequence[int]) -> float:
    """Share of trigrams that occurred before in the text, 0 to 1."""
    ngrams = _ngrams(tokens, 3)
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def _ngrams(tokens: Sequence[int], n: int) -> list[tuple[int, ...]]:
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


def _entropy(ngrams: Sequence[tuple[int, ...]]) -> float:
    total = len(ngrams)
    return -math.fsum(count / total * math.log2(count / total) for count in Counter(ngrams).values())
