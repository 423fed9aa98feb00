"""MEMIT: a ledger of facts to weight updates, as a pure function of base, ledger and settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from editor.insertion import Insertion
from editor.progress import Progress, silent
from editor.requests import EditRequest, rewrite_rows
from editor.value_cache import ValueCache, value_key
from editor.values import ValueOptimiser

if TYPE_CHECKING:
    from collections.abc import Sequence

    from editor.language_model import LanguageModel
    from editor.preparation import Preparation
    from editor.settings import MemitSettings

TOKENS_PER_BATCH = 1024
"""Suffix tokens optimised together; bounds the memory of a step."""


class Memit:
    """Mass editing of one base model.

    Args:
        language_model: the pristine base; never changed.
        settings: MEMIT settings that fit it.
        preparation: its contexts and covariance.
        cache: where value vectors are kept between runs.
    """

    def __init__(
        self,
        language_model: LanguageModel,
        settings: MemitSettings,
        preparation: Preparation,
        cache: ValueCache,
    ) -> None:
        settings.check_fits(language_model.model.config)
        self._lm = language_model
        self._settings = settings
        self._contexts = preparation.contexts
        self._optimise = ValueOptimiser(language_model, settings, self._contexts)
        self._insert = Insertion(language_model, settings, self._contexts, preparation.covariance)
        self._cache = cache

    def update(
        self, requests: Sequence[EditRequest], protected: Sequence[str] = (), progress: Progress = silent
    ) -> dict[str, Tensor]:
        """Weight updates by parameter name, float32, in the orientation in which each weight is stored.

        The order of the requests does not matter, and one given twice counts once.

        Args:
            requests: the facts.
            protected: texts that the model shall go on reading as it does.
            progress: may raise to interrupt.

        Raises:
            RequestInvalid: a request cannot be written.
            NumericalFailure: an optimisation or the solve failed.
            Interrupted: the progress callback asked to stop; finished batches are in the cache.
        """
        ordered = sorted(set(requests), key=lambda request: (len(request.variants), request))
        if not ordered:
            return {}
        updates = self._insert(ordered, self.values(ordered, progress), sorted(protected), progress)
        architecture = self._lm.architecture
        return {
            architecture.weight_name(layer): architecture.as_stored(update).contiguous()
            for layer, update in updates.items()
        }

    def values(self, requests: Sequence[EditRequest], progress: Progress = silent) -> Tensor:
        """Value vectors ``[facts, d]``, from the cache or optimised (and then cached) batch by batch."""
        keys = [value_key(self._lm.digest, self._settings, self._contexts, request) for request in requests]
        known = self._cache.get(keys)
        missing = {key: request for key, request in zip(keys, requests, strict=True) if key not in known}
        total = len(missing) * self._settings.steps
        done = 0
        for batch in self._batches(missing):
            start, size = done, len(batch)

            def after_step(step: int, _steps: int, start: int = start, size: int = size) -> None:
                progress("value vectors", start + step * size, total)

            vectors = self._optimise([missing[key] for key in batch], after_step).cpu()
            solved = dict(zip(batch, vectors, strict=True))
            self._cache.put(solved)
            known |= solved
            done += size * self._settings.steps
            progress("value vectors", done, total)
        return torch.stack([known[key] for key in keys])

    def _batches(self, missing: dict[str, EditRequest]) -> list[list[str]]:
        """Keys in batches of similar length.

        Batches follow a total order of the missing facts, so a run resumed after whole batches forms the same
        ones, and with them the same bits.
        """
        # Suffix tokens of all the fact's texts, and of its longest: like facts finish together and waste little.
        shapes: dict[str, tuple[int, int]] = {}
        for key, request in missing.items():
            suffixes = [len(row.ids) - row.subject for row in rewrite_rows(self._lm.tokenizer, self._contexts, request)]
            shapes[key] = (sum(suffixes), max(suffixes))
        batches: list[list[str]] = []
        tokens = 0
        for key in sorted(missing, key=lambda key: (shapes[key], key)):
            tokens += shapes[key][0]
            if not batches or tokens > TOKENS_PER_BATCH:
                batches.append([])
                tokens = shapes[key][0]
            batches[-1].append(key)
        return batches
