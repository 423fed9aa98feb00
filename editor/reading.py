"""Reading: how well a model predicts ordinary text, and how far its next words are from another model's."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from editor.packing import Packing, Segment
from editor.probing import by_tokens
from editor.progress import Progress, silent
from editor.stack import Stack, token_ids
from editor.tree import LOGITS_AT_ONCE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from editor.language_model import LanguageModel


@dataclass(frozen=True)
class Reading:
    """How a model reads one text.

    Attributes:
        tokens: predicted, one less than the text has.
        loss: negative log-likelihood of all of them, in nats.
        divergence: sum over them of KL(model || reference) of the next token, in nats; 0 without a reference.
    """

    tokens: int
    loss: float
    divergence: float


@torch.no_grad()
def readings(
    language_model: LanguageModel,
    texts: Sequence[Sequence[int]],
    reference: LanguageModel | None = None,
    progress: Progress = silent,
) -> list[Reading]:
    """How a model reads each text, as token ids, in the order of the texts; those of one token are left out.

    Args:
        language_model: the reader.
        texts: read separately.
        reference: of the same vocabulary, to take the divergence from.
        progress: told after each batch.
    """
    usable = [tuple(text) for text in texts if len(text) > 1]
    order = sorted(range(len(usable)), key=lambda index: (len(usable[index]), usable[index]))
    stack, other = _stack(language_model), None if reference is None else _stack(reference)
    result: dict[int, Reading] = {}
    for batch in by_tokens(sorted(usable), len):
        packing = Packing([Segment(len(text)) for text in batch], language_model.device)
        ids = token_ids(batch, packing, language_model.device)
        at = [start + k for text, start in zip(batch, packing.starts, strict=True) for k in range(len(text) - 1)]
        places = torch.tensor(at, device=language_model.device)
        wanted = torch.tensor([token for text in batch for token in text[1:]], device=language_model.device)
        states = stack(ids, packing)[places]
        others = None if other is None else other(ids, packing)[places]
        losses, divergences = _per_token(language_model, states, wanted, reference, others)
        lengths = [len(text) - 1 for text in batch]
        for loss, divergence, length in zip(
            torch.split(losses, lengths), torch.split(divergences, lengths), lengths, strict=True
        ):
            result[order[len(result)]] = Reading(length, float(loss.sum()), float(divergence.sum()))
        progress("reading", len(result), len(usable))
    return [result[index] for index in range(len(usable))]


def perplexity(language_model: LanguageModel, texts: Sequence[Sequence[int]], progress: Progress = silent) -> float:
    """``exp`` of the mean negative log-likelihood per predicted token over texts read separately."""
    read = readings(language_model, texts, progress=progress)
    count = sum(each.tokens for each in read)
    return math.exp(math.fsum(each.loss for each in read) / count) if count else math.nan


def _stack(language_model: LanguageModel) -> Stack:
    return Stack(language_model.model, language_model.architecture, 0, language_model.depth, from_tokens=True)


def _per_token(
    language_model: LanguageModel,
    states: Tensor,
    wanted: Tensor,
    reference: LanguageModel | None,
    others: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Loss and divergence at each position, both float64 ``[positions]`` on the CPU."""
    losses, divergences = [], []
    for start in range(0, len(states), LOGITS_AT_ONCE):
        part = slice(start, start + LOGITS_AT_ONCE)
        log_probabilities = language_model.head(states[part]).float().log_softmax(1)
        losses.append(-log_probabilities.gather(1, wanted[part].unsqueeze(1)).squeeze(1))
        if reference is None or others is None:
            divergences.append(torch.zeros_like(losses[-1]))
            continue
        expected = reference.head(others[part]).float().log_softmax(1)
        divergences.append((log_probabilities.exp() * (log_probabilities - expected)).sum(1))
    return torch.cat(losses).double().cpu(), torch.cat(divergences).double().cpu()
