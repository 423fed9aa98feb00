"""Texts that share their beginnings: each token is read once, whatever follows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from editor.packing import Packing, Segment
from editor.stack import KeyValues, Prefix, Stack, token_ids

if TYPE_CHECKING:
    from collections.abc import Sequence

    from editor.language_model import LanguageModel

LOGITS_AT_ONCE = 128
"""Positions whose logits are held at once: 26 MB for 50,000 words in float32, which the allocator reuses."""

Path = tuple[int, ...]
"""The tokens of a text from its beginning on, by the numbers under which a tree has read them."""


@dataclass(frozen=True)
class Predicted:
    """What follows some tokens, all on the CPU.

    Attributes:
        log_probabilities: of the tokens that were asked for, float32 ``[n]``, in nats.
        best: the most likely tokens, ``[n]``.
    """

    log_probabilities: Tensor
    best: Tensor


class Tree:
    """Reads texts behind what it has read, packed without padding, and predicts what follows where it is asked.

    Args:
        language_model: the model.
        stack: all of its blocks, from tokens.
    """

    def __init__(self, language_model: LanguageModel, stack: Stack) -> None:
        self._lm, self._stack = language_model, stack
        self._store = KeyValues()
        self._states: list[Tensor] = []
        self._tokens = 0

    def read(self, texts: Sequence[Sequence[int]], behind: Sequence[Path]) -> list[Path]:
        """Read texts (some may be empty), each behind a path; returns the paths that end with them."""
        segments = [Segment(len(ids), path) for ids, path in zip(texts, behind, strict=True) if ids]
        if not segments:
            return list(behind)
        packing = Packing(segments, self._lm.device)
        ids = token_ids([ids for ids in texts if ids], packing, self._lm.device)
        hidden = self._stack(ids, packing, Prefix(self._store, packing, 0, self._lm.depth), self._store)
        self._states.append(hidden[: packing.tokens])
        starts = iter(packing.starts)
        paths = []
        for text, path in zip(texts, behind, strict=True):
            first = self._tokens + next(starts) if text else 0
            paths.append((*path, *range(first, first + len(text))))
        self._tokens += packing.tokens
        return paths

    def predict(self, places: Sequence[int], wanted: Sequence[int] | None = None) -> Predicted:
        """What follows the tokens at some places; a place may be asked for several times and costs once.

        Args:
            places: numbers of tokens, as in paths.
            wanted: the tokens whose log-probabilities are taken; by default the most likely ones.
        """
        if not places:
            return Predicted(torch.empty(0), torch.empty(0, dtype=torch.long))
        device = self._lm.device
        self._states = [torch.cat(self._states)]
        unique, which = torch.unique(torch.tensor(places, device=device), return_inverse=True)
        tokens = None if wanted is None else torch.tensor(wanted, device=device)
        picked = torch.empty(len(places), device=device)
        best = torch.empty(len(places), dtype=torch.long, device=device)
        for start in range(0, len(unique), LOGITS_AT_ONCE):
            part = slice(start, start + LOGITS_AT_ONCE)
            logits = self._lm.head(self._states[0][unique[part]]).float()
            asked = ((which >= start) & (which < start + LOGITS_AT_ONCE)).nonzero().squeeze(1)
            rows = which[asked] - start
            best[asked] = logits.argmax(1)[rows]
            chosen = best[asked] if tokens is None else tokens[asked]
            picked[asked] = logits[rows, chosen] - logits.logsumexp(1)[rows]
        return Predicted(picked.cpu(), best.cpu())
