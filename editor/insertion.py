"""Insertion: spread the value vectors' residual over the edited blocks (Meng et al. 2022, section 4.3).

For layers ascending, index i of n: ``R = (Z - h_L) / (n - i)``, ``Delta = R K^T (lambda C + K K^T)^-1``, write, go on
with the new weights. Texts are cut at the subject's last token, and each block runs once on from the last edited one.

One term is ours: with ``suffix_weight`` mu > 0 the system also holds ``mu K_s K_s^T``, the keys of every other token
of the prompts with their targets. Value vectors are optimised as if only the subject's token changed; without the term
the update also moves the tokens after it, and a target of several tokens comes out wrong (measured in
docs/benchmarks.md). Zero gives MEMIT as published.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from editor.covariance import KeyRecorder
from editor.errors import NumericalFailure
from editor.progress import Progress, silent
from editor.requests import EditRequest, pad, rewrite_row
from editor.stack import Stack

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from editor.language_model import LanguageModel
    from editor.settings import MemitSettings

ROWS_PER_BATCH = 256


@dataclass
class _Rows:
    """Texts on their way through the blocks: ``hidden`` [rows, T, d] entering the next block to run."""

    hidden: Tensor
    mask: Tensor
    positions: Tensor
    subject: Tensor  # [rows]

    def elsewhere(self, states: Tensor) -> Tensor:
        """``states`` [rows, T, n] at real tokens but the subject's last and the first: [tokens, n].

        A text's first token serves as a rest for attention; its states are the same in every text.
        """
        wanted = self.mask.bool() & (self.positions != self.subject.unsqueeze(1)) & (self.positions > 0)
        return states[wanted]

    def at_subject(self, states: Tensor) -> Tensor:
        """``states`` [rows, T, n] at each row's subject: [rows, n]."""
        return states[torch.arange(len(self.subject), device=states.device), self.subject]


class Insertion:
    """Computes weight updates for one model, settings, contexts and covariance.

    Args:
        language_model: the model to start from; its weights are the same after every call.
        settings: MEMIT settings.
        contexts: context templates, the first bare.
        covariance: per edited layer, ``[d_ff, d_ff]``.
    """

    def __init__(
        self,
        language_model: LanguageModel,
        settings: MemitSettings,
        contexts: Sequence[str],
        covariance: Mapping[int, Tensor],
    ) -> None:
        self._lm = language_model
        self._settings = settings
        self._contexts = tuple(contexts)
        self._covariance = covariance

    @torch.no_grad()
    def __call__(
        self, requests: Sequence[EditRequest], values: Tensor, progress: Progress = silent
    ) -> dict[int, Tensor]:
        """Updates per layer, float32 ``[d, d_ff]`` on the CPU, whatever orientation the weights are stored in.

        Args:
            requests: the facts.
            values: their value vectors ``[facts, d]``.
            progress: told the layers done; may raise to interrupt (the weights are restored).

        Raises:
            NumericalFailure: the system is singular or an update is not finite.
        """
        layers = self._settings.layers
        saved = {layer: self._weight(layer).detach().clone() for layer in layers}
        try:
            return self._insert(requests, values, progress)
        finally:
            for layer, weight in saved.items():
                self._weight(layer).copy_(weight)

    def _insert(self, requests: Sequence[EditRequest], values: Tensor, progress: Progress) -> dict[int, Tensor]:
        layers = self._settings.layers
        subjects = self._texts(requests, self._contexts, to_subject=True)
        # Whole prompts and targets are run only where their other tokens count.
        wholes = self._texts(requests, self._contexts[:1], to_subject=False) if self._settings.suffix_weight else []
        updates: dict[int, Tensor] = {}
        for index, layer in enumerate(layers):
            keys = torch.cat([self._keys(batch, layer) for batch in subjects])
            present = torch.cat([self._present_values(batch, layer) for batch in subjects])
            residual = (values.to(present) - present) / (len(layers) - index)
            update = self._solve(layer, keys, residual, self._resistance(layer, wholes))
            updates[layer] = update.float().cpu()
            weight = self._weight(layer)
            stored = self._lm.architecture.as_stored(update.float())
            weight.copy_((weight.float() + stored).to(weight.dtype))
            if index + 1 < len(layers):
                for batch in [*subjects, *wholes]:
                    self._advance(batch, layer, layers[index + 1])
            progress("insertion", index + 1, len(layers))
        return updates

    def _texts(
        self, requests: Sequence[EditRequest], contexts: Sequence[str], *, to_subject: bool
    ) -> list[_Rows]:
        """Texts in batches of whole facts, at the input of the first edited block."""
        step = max(1, ROWS_PER_BATCH // len(contexts))
        return [
            self._start(requests[i : i + step], contexts, to_subject=to_subject)
            for i in range(0, len(requests), step)
        ]

    def _resistance(self, layer: int, wholes: Sequence[_Rows]) -> Tensor:
        """What resists the update: ``lambda C``, and the other tokens' keys where they count."""
        moment = self._covariance[layer].to(self._lm.device) * self._settings.covariance_weight
        for batch in wholes:
            keys = batch.elsewhere(self._recorded(batch, layer)).double()
            moment += self._settings.suffix_weight * (keys.T @ keys)
        return moment

    def _weight(self, layer: int) -> Tensor:
        weight: Tensor = self._lm.architecture.down_projection_of(self._lm.model, layer).weight
        return weight

    def _blocks(self, first: int, last: int) -> Stack:
        return Stack(self._lm.model, self._lm.architecture, first, last, from_tokens=False)

    def _start(self, requests: Sequence[EditRequest], contexts: Sequence[str], *, to_subject: bool) -> _Rows:
        """Hidden states entering the first edited block, facts x contexts rows.

        Texts end at the subject's last token, or before the last target token, which is only predicted.
        """
        rows = [rewrite_row(self._lm.tokenizer, context, r) for r in requests for context in contexts]
        cut = [row.ids[: row.subject + 1] if to_subject else row.ids[:-1] for row in rows]
        ids, mask = pad(cut, self._lm.device)
        positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        subject = torch.tensor([row.subject for row in rows], device=ids.device)
        first = self._settings.layers[0]
        hidden = Stack(self._lm.model, self._lm.architecture, 0, first, from_tokens=True)(ids, mask, positions)
        return _Rows(hidden, mask, positions, subject)

    def _advance(self, rows: _Rows, layer: int, following: int) -> None:
        """Run the blocks from the one just edited up to the next one to edit."""
        stack = self._blocks(layer, following)
        rows.hidden = stack(rows.hidden, rows.mask, rows.positions)

    def _keys(self, rows: _Rows, layer: int) -> Tensor:
        """Keys ``[facts, d_ff]``: half the bare prompt's, half the mean of the prefixed prompts'."""
        keys = rows.at_subject(self._recorded(rows, layer)).double()
        keys = keys.view(-1, len(self._contexts), keys.shape[-1])
        if len(self._contexts) == 1:
            return keys[:, 0]
        return (keys[:, 0] + keys[:, 1:].mean(1)) / 2

    def _recorded(self, rows: _Rows, layer: int) -> Tensor:
        """Inputs of a block's down projection ``[rows, T, d_ff]``."""
        with KeyRecorder(self._lm, [layer]) as recorder:
            self._blocks(layer, layer + 1)(rows.hidden, rows.mask, rows.positions)
        return recorder.recorded[layer]

    def _present_values(self, rows: _Rows, layer: int) -> Tensor:
        """Output of block L at the subject's last token of the bare prompt, as the weights are now: ``[facts, d]``."""
        bare = slice(None, None, len(self._contexts))
        stack = self._blocks(layer, self._settings.layers[-1] + 1)
        out = stack(rows.hidden[bare], rows.mask[bare], rows.positions[bare])
        return out[torch.arange(len(out), device=out.device), rows.subject[bare]].double()

    def _solve(self, layer: int, keys: Tensor, residual: Tensor, resistance: Tensor) -> Tensor:
        """``R K^T (resistance + K K^T)^-1`` in float64 with keys as rows: ``[d, d_ff]``."""
        factor, info = torch.linalg.cholesky_ex(resistance + keys.T @ keys)
        if int(info) != 0:
            raise NumericalFailure(f"layer {layer}: the covariance is singular: use more covariance_tokens")
        update = residual.T @ torch.cholesky_solve(keys.T, factor).T
        if not bool(torch.isfinite(update).all()):
            raise NumericalFailure(f"layer {layer}: the update is not finite: raise covariance_weight")
        return update
