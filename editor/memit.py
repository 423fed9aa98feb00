"""MEMIT: a ledger of facts to weight updates, as a pure function of base, ledger and settings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from editor.insertion import Batch, Fit, Insertion
from editor.memory import USABLE, free_memory
from editor.precision import chosen_precision
from editor.progress import Progress, silent
from editor.requests import EditRequest, rewrite_rows
from editor.value_cache import ValueCache, value_key
from editor.values import ValueOptimiser, by_subject

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from editor.language_model import LanguageModel
    from editor.preparation import Preparation
    from editor.settings import MemitSettings

TOKENS_PER_BATCH = {"cpu": 1024, "cuda": 16384}
"""Suffix tokens optimised together: more gain nothing (and take memory)."""


@dataclass(frozen=True)
class WeightUpdate:
    """What to add to the base's weights.

    Attributes:
        tensors: by parameter name, float32, in the orientation in which each weight is stored.
        fit: how well the layers hold it.
    """

    tensors: dict[str, Tensor]
    fit: Fit = field(default_factory=Fit)


class Memit:
    """Mass editing of one base model.

    Args:
        language_model: the pristine base; never changed.
        settings: MEMIT settings that fit it.
        preparation: its contexts and covariance.
        cache: where value vectors are kept between runs.
        memory: bytes that an optimisation step may take beside the model; half of what is free where not given. It
            decides how many facts are optimised together, never what comes out.
    """

    def __init__(
        self,
        language_model: LanguageModel,
        settings: MemitSettings,
        preparation: Preparation,
        cache: ValueCache,
        memory: int | None = None,
    ) -> None:
        settings.check_fits(language_model.model.config)
        self._lm = language_model
        # Part of what a value vector depends on, so it is named before the cache is asked.
        self._settings = settings.model_copy(update={"precision": chosen_precision(language_model, settings.precision)})
        self._contexts = preparation.contexts
        self._optimise = ValueOptimiser(language_model, self._settings, self._contexts)
        self._insert = Insertion(language_model, settings, self._contexts, preparation.covariance, preparation.factors)
        self._cache = cache
        self._memory = memory

    def update(
        self,
        batches: Sequence[Sequence[EditRequest]],
        protected: Sequence[str] = (),
        progress: Progress = silent,
    ) -> WeightUpdate:
        """The weight update that writes a ledger.

        The order within a batch does not matter, and a request given twice counts once. The strategy decides whether
        batches do.

        Args:
            batches: the facts, as they came over time.
            protected: texts that the model shall go on reading as it does.
            progress: may raise to interrupt.

        Raises:
            RequestInvalid: a request cannot be written.
            NumericalFailure: an optimisation or the solve failed.
            Interrupted: the progress callback asked to stop; finished batches are in the cache.
        """
        ordered = list(_distinct(batches, merged=self._settings.strategy == "ledger"))
        if not ordered:
            return WeightUpdate({})
        everything = [request for batch in ordered for request in batch]
        vectors = dict(zip(everything, self.values(everything, progress), strict=True))
        wanted = [Batch(batch, torch.stack([vectors[request] for request in batch])) for batch in ordered]
        updates, fit = self._insert(wanted, sorted(protected), progress)
        architecture = self._lm.architecture
        tensors = {
            architecture.weight_name(layer): architecture.as_stored(update).contiguous()
            for layer, update in updates.items()
        }
        return WeightUpdate(tensors, fit)

    def values(self, requests: Sequence[EditRequest], progress: Progress = silent) -> Tensor:
        """Value vectors ``[facts, d]``, from the cache or optimised (and then cached) batch by batch.

        Facts about one subject are optimised together, so a vector depends on its subject's other facts too.
        """
        units = [[request for _, request in unit] for unit in by_subject(sorted(requests))]
        keys = {request: self._key(request, unit) for unit in units for request in unit}
        known = self._cache.get(list(keys.values()))
        missing = [unit for unit in units if any(keys[request] not in known for request in unit)]
        total = sum(map(len, missing)) * self._settings.steps
        done = 0
        for batch in self._batches(missing):
            start, size = done, len(batch)

            def after_step(step: int, _steps: int, start: int = start, size: int = size) -> None:
                progress("value vectors", start + step * size, total)

            vectors = self._solved(batch, after_step)
            solved = {keys[request]: vector for request, vector in zip(batch, vectors, strict=True)}
            self._cache.put(solved)
            known |= solved
            done += size * self._settings.steps
            progress("value vectors", done, total)
        return torch.stack([known[keys[request]] for request in requests])

    def _solved(self, batch: Sequence[EditRequest], after_step: Callable[[int, int], None]) -> Tensor:
        """Value vectors of a batch, by halves where the device has less memory than it said."""
        try:
            return self._optimise(batch, after_step).float().cpu()  # as they come back from the cache
        except torch.OutOfMemoryError:
            units = by_subject(batch)
            if len(units) == 1:
                raise
        torch.cuda.empty_cache()
        where = {request: index for index, request in enumerate(batch)}
        vectors: list[Tensor] = [torch.empty(0)] * len(batch)
        for half in (units[: len(units) // 2], units[len(units) // 2 :]):
            requests = [request for unit in half for _, request in unit]
            for request, vector in zip(requests, self._solved(requests, after_step), strict=True):
                vectors[where[request]] = vector
        return torch.stack(vectors)

    def _key(self, request: EditRequest, siblings: Sequence[EditRequest]) -> str:
        return value_key(self._lm.digest, self._settings, self._contexts, request, siblings)

    def _batches(self, units: Sequence[Sequence[EditRequest]]) -> list[list[EditRequest]]:
        """Facts in batches of similar length, those about one subject together.

        Batches follow a total order of the missing facts, so a run resumed after whole batches forms the same
        ones, and with them the same bits.
        """
        # Suffix tokens of all the unit's texts, and of its longest: like facts finish together and waste little.
        shapes: dict[int, tuple[int, int]] = {}
        for number, unit in enumerate(units):
            rows = [row for r in unit for row in rewrite_rows(self._lm.tokenizer, self._contexts, r)]
            suffixes = [len(row.ids) - row.subject for row in rows]
            shapes[number] = (sum(suffixes), max(suffixes))
        batches: list[list[EditRequest]] = []
        tokens = subjects = 0
        order = sorted(shapes, key=lambda number: (shapes[number], number))
        fits = self._fits([units[order[-1]]] if order else [])
        for number in order:
            tokens, subjects = tokens + shapes[number][0], subjects + 1
            if not batches or not fits(tokens, subjects):
                batches.append([])
                tokens, subjects = shapes[number][0], 1
            batches[-1] += units[number]
        return batches

    def _fits(self, longest: Sequence[Sequence[EditRequest]]) -> Callable[[int, int], bool]:
        """Whether so many suffix tokens about so many subjects may be optimised together."""
        most = TOKENS_PER_BATCH.get(self._lm.device.type, TOKENS_PER_BATCH["cpu"])
        if not longest:
            return lambda _tokens, _subjects: True
        step = self._optimise.memory([request for unit in longest for request in unit])
        budget = USABLE * free_memory(self._lm.device) if self._memory is None else self._memory
        # A step reads one turn's share of the tokens.
        turns = min(self._settings.turns, len(self._contexts) + len(longest[0][0].variants))

        def fits(tokens: int, subjects: int) -> bool:
            read = -(-tokens // turns)
            return read <= most and step.peak(read, subjects) <= budget

        return fits


def _distinct(batches: Sequence[Sequence[EditRequest]], *, merged: bool) -> Iterator[list[EditRequest]]:
    """Batches in a total order within, each request where it first occurs; none empty."""
    seen: set[EditRequest] = set()
    everything = [request for batch in batches for request in batch]
    for batch in [everything] if merged else batches:
        fresh = sorted(set(batch) - seen)
        seen.update(fresh)
        if fresh:
            yield fresh
