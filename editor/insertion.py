"""Insertion: spread the value vectors' residual over the edited blocks (Meng et al. 2022, section 4.3).

For layers ascending, index i of n: ``R = (Z - h_L) / (n - i)``, ``Delta = R K^T (lambda C + K K^T)^-1``, write, go on
with the new weights. Texts are packed and cut at the subject's last token. Each starts from the hidden states that
enter the first edited block, and none goes further than the last edited one.

Three terms are ours. With ``suffix_weight`` mu > 0 the system also holds ``mu K_s K_s^T``, the keys of every other
token of the prompts with their targets. Value vectors are optimised as if only the subject's token changed; without
the term the update also moves the tokens after it, and a target of several tokens comes out wrong (measured in
docs/architecture.md). Protected texts add ``K_p K_p^T`` in the same way, and ``shrinkage`` moves C towards the
identity. Without any of them it is MEMIT as published.

After the passes, ``reinforcements`` move those facts further that greedy decoding does not give yet: a few hard facts
then do not set the strength for all.

Batches are written one after another; the keys of earlier ones then stay in the system, so that a later batch leaves
them where they are (ENCORE, Gupta et al. 2025; AlphaEdit).
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from editor.edit_texts import EditTextReader, EditTexts, Line
from editor.probing import scores
from editor.progress import Progress, silent
from editor.requests import EditRequest, TokenRow, fill, rewrite_rows
from editor.solve import Factors, Prior, System

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from editor.language_model import LanguageModel
    from editor.settings import MemitSettings

LONGER, HEAVIER = 0.1, 3.0
"""How a reinforcement changes a fact's aim and weight; chosen by docs/benchmarks.md."""


@dataclass(frozen=True)
class Batch:
    """Facts that are written together, and their value vectors ``[facts, d]``."""

    requests: Sequence[EditRequest]
    values: Tensor


@dataclass(frozen=True)
class Fit:
    """How well the edited layers hold what was written.

    Attributes:
        load: share of a key's dimensions that the facts take up, in the fullest layer: 0 to 1.
        unwritten: share of the wanted changes (root mean square over facts) that the final weights do not make.
    """

    load: float = 0.0
    unwritten: float = 0.0


@dataclass
class _Work:
    """The texts of one batch."""

    bare: list[EditTexts]
    others: list[EditTexts]
    other_counts: Tensor  # [facts] how many texts beside the bare one
    plain: list[EditTexts]
    aims: Tensor  # [facts, d] what the output of block L shall become
    wanted: Tensor  # [facts] the requests' strength
    columns: int = field(init=False)
    moved: Tensor = field(init=False)  # [facts] those that a pass moves; the keys of the others stay where they are
    strength: Tensor = field(init=False)  # [facts] weight in the least squares

    def __post_init__(self) -> None:
        device = self.other_counts.device
        self.moved = torch.ones(len(self.aims), dtype=torch.bool, device=device)
        self.strength = self.wanted
        self.columns = len(self.aims) + sum(len(texts.elsewhere) for texts in [*self.bare, *self.plain])

    @property
    def texts(self) -> list[EditTexts]:
        return [*self.bare, *self.others, *self.plain]


class Insertion:
    """Computes weight updates for one model, settings, contexts and covariance.

    Args:
        language_model: the model to start from; its weights are the same after every call.
        settings: MEMIT settings.
        contexts: context templates, the first bare.
        covariance: per edited layer, ``[d_ff, d_ff]``.
        factors: matrices kept between runs.
    """

    def __init__(
        self,
        language_model: LanguageModel,
        settings: MemitSettings,
        contexts: Sequence[str],
        covariance: Mapping[int, Tensor],
        factors: Factors | None = None,
    ) -> None:
        self._lm = language_model
        self._settings = settings
        self._contexts = tuple(contexts)
        self._top = settings.layers[-1]
        self._packed = EditTextReader(language_model, contexts, settings.layers[0])
        self._prior = Prior(covariance, settings, factors or Factors(), language_model.device)

    @torch.no_grad()
    def __call__(
        self, batches: Sequence[Batch], protected: Sequence[str] = (), progress: Progress = silent
    ) -> tuple[dict[int, Tensor], Fit]:
        """Updates per layer, float32 ``[d, d_ff]`` on the CPU, whatever orientation the weights are stored in.

        Args:
            batches: facts, written batch after batch.
            protected: texts of which every token resists the update.
            progress: told the layers done; may raise to interrupt (the weights are restored).

        Raises:
            NumericalFailure: the system is singular or an update is not finite.
        """
        updates: dict[int, Tensor] = {}
        earlier: dict[int, list[Tensor]] = {layer: [] for layer in self._settings.layers}
        each = self._settings.passes + self._settings.reinforcements
        load = unwritten = 0.0
        with self._restored():
            for number, batch in enumerate(batches):
                work = self._work(batch, protected)
                first = self._missing(work)
                for turn in range(each):
                    if turn >= self._settings.passes and not self._strengthen(batch.requests, work, first):
                        break
                    keys, loads = self._pass(work, updates, earlier)
                    # Facts that are pushed weigh more than they are.
                    load = max(loads) if turn < self._settings.passes else load
                    progress("insertion", number * each + turn + 1, len(batches) * each)
                progress("insertion", (number + 1) * each, len(batches) * each)
                for layer in self._settings.layers:
                    earlier[layer].append(keys[layer])
                work.aims = batch.values
                unwritten = float(self._missing(work).norm() / first.norm().clamp(min=1e-30))
        return {layer: update.float().cpu() for layer, update in updates.items()}, Fit(load, unwritten)

    @contextlib.contextmanager
    def _restored(self) -> Iterator[None]:
        """Weights written within are put back at the end."""
        saved = {layer: self._weight(layer).detach().clone() for layer in self._settings.layers}
        try:
            yield
        finally:
            for layer, weight in saved.items():
                self._weight(layer).copy_(weight)

    def _strengthen(self, requests: Sequence[EditRequest], work: _Work, first: Tensor) -> bool:
        """Whether there are facts that the model does not give yet; only they are moved from now on.

        What they are moved by grows by :data:`LONGER` of the first wanted change ``[facts, d]``, and their weight in
        the least squares by the factor :data:`HEAVIER`.
        """
        asked = [(fill(request.prompt, request.subject), request.target) for request in requests]
        given = torch.tensor([score.greedy for score in scores(self._lm, asked)], device=self._lm.device)
        work.moved = ~given
        work.aims = torch.where(given.unsqueeze(1), work.aims, work.aims.to(first) + LONGER * first)
        work.strength = torch.where(given, work.wanted, work.strength * HEAVIER)
        return not bool(given.all())

    def _pass(
        self, work: _Work, updates: dict[int, Tensor], earlier: Mapping[int, Sequence[Tensor]]
    ) -> tuple[dict[int, Tensor], list[float]]:
        """Go through the layers once, adding to the weights and to ``updates``; keys and loads per layer."""
        layers = self._settings.layers
        all_keys, loads = {}, []
        # What one pass leaves of the residual, the next one spreads again.
        for texts in work.texts:
            texts.rewind()
        for index, layer in enumerate(layers):
            before = earlier[layer]
            system = System(self._prior, layer, work.columns + sum(map(len, before)), len(work.aims))
            for keys in before:
                system.add(keys)
            keys, present = self._read(work, layer, system)
            residual = (work.aims.to(present) - present) / (len(layers) - index) * work.moved.unsqueeze(1)
            scale = work.strength.sqrt().unsqueeze(1)
            update, leverage = system.solve(keys * scale, residual * scale)
            all_keys[layer] = keys
            loads.append(float(leverage.sum()) / self._prior.width(layer))
            updates[layer] = updates[layer] + update if layer in updates else update
            self._write(layer, update)
            if index + 1 < len(layers):
                for texts in work.texts:
                    texts.advance(layer, layers[index + 1])
        return all_keys, loads

    def _read(self, work: _Work, layer: int, system: System) -> tuple[Tensor, Tensor]:
        """Keys ``[facts, d_ff]`` and outputs of block L ``[facts, d]``, with the weights as they are now."""
        bare, present = [], []
        for texts in work.bare:
            out, keys = texts.keys(layer)
            bare.append(keys[texts.subject])
            present.append(texts.subjects_at(self._top, out, layer + 1))
            self._resist(system, texts, keys)
        for texts in work.plain:
            self._resist(system, texts, texts.keys(layer)[1])
        others = [texts.keys(layer)[1][texts.subject] for texts in work.others]
        return self._keys(torch.cat(bare), others, work.other_counts), torch.cat(present)

    def _keys(self, bare: Tensor, others: Sequence[Tensor], counts: Tensor) -> Tensor:
        """Half the bare prompt's key, half the mean of the other texts'."""
        bare = bare.double()
        if not others:
            return bare
        mean = torch.segment_reduce(torch.cat(list(others)).double(), "mean", lengths=counts, initial=0.0)
        return torch.where(counts.unsqueeze(1) > 0, (bare + mean) / 2, bare)

    def _missing(self, work: _Work) -> Tensor:
        """What is missing to the aims now: ``[facts, d]``."""
        first = self._settings.layers[0]
        present = torch.cat([texts.subjects_at(self._top, first=first) for texts in work.bare])
        return work.aims.to(present) - present

    @staticmethod
    def _resist(system: System, texts: EditTexts, keys: Tensor) -> None:
        if len(texts.elsewhere):
            system.add(keys[texts.elsewhere], texts.weight)

    def _write(self, layer: int, update: Tensor) -> None:
        weight = self._weight(layer)
        weight.copy_((weight.float() + self._lm.architecture.as_stored(update.float())).to(weight.dtype))

    def _weight(self, layer: int) -> Tensor:
        return self._lm.architecture.down_projection_of(self._lm.model, layer).get_parameter("weight")

    def _work(self, batch: Batch, protected: Sequence[str]) -> _Work:
        """All texts of a batch."""
        weight = self._settings.suffix_weight
        bare, others, counts = [], [], []
        for request in batch.requests:
            first, *rest = rewrite_rows(self._lm.tokenizer, self._contexts, request)
            # The last target token is only predicted.
            bare.append(Line(TokenRow(first.ids[:-1], first.subject, first.target) if weight else _cut(first)))
            # Contexts come first, then variants, which stand bare.
            others += [
                Line(_cut(row), place if place < len(self._contexts) else 0) for place, row in enumerate(rest, 1)
            ]
            counts.append(len(rest))
        plain = self._plain(protected) if self._settings.protect_weight else []
        return _Work(
            self._packed(bare, weight),
            self._packed(others, 0.0),
            torch.tensor(counts, device=self._lm.device),
            self._packed(plain, self._settings.protect_weight),
            batch.values,
            torch.tensor([request.strength for request in batch.requests], dtype=torch.float64, device=self._lm.device),
        )

    def _plain(self, texts: Sequence[str]) -> list[Line]:
        """Texts without a subject."""
        encoded = [tuple(self._lm.tokenizer(text)["input_ids"]) for text in texts]
        return [Line(TokenRow(ids, subject=-1, target=len(ids))) for ids in encoded if ids]


def _cut(row: TokenRow) -> TokenRow:
    """A text up to the subject's last token: nothing after it matters there."""
    return TokenRow(row.ids[: row.subject + 1], row.subject, row.target)
