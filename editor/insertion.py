"""Insertion: spread the value vectors' residual over the edited blocks (Meng et al. 2022, section 4.3).

For layers ascending, index i of n: ``R = (Z - h_L) / (n - i)``, ``Delta = R K^T (lambda C + K K^T)^-1``, write, go on
with the new weights. Texts are cut at the subject's last token, and each block runs once on from the last edited one.

Three terms are ours. With ``suffix_weight`` mu > 0 the system also holds ``mu K_s K_s^T``, the keys of every other
token of the prompts with their targets. Value vectors are optimised as if only the subject's token changed; without
the term the update also moves the tokens after it, and a target of several tokens comes out wrong (measured in
docs/architecture.md). Protected texts add ``K_p K_p^T`` in the same way, and ``shrinkage`` moves C towards the
identity. Without any of them it is MEMIT as published.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from editor.covariance import KeyRecorder
from editor.errors import NumericalFailure
from editor.progress import Progress, silent
from editor.requests import EditRequest, TokenRow, pad, rewrite_rows
from editor.stack import Stack

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from editor.language_model import LanguageModel
    from editor.settings import MemitSettings

ROWS_PER_BATCH = 256


@dataclass
class _Rows:
    """Texts on their way through the blocks.

    ``hidden`` [rows, T, d] enters the next block to run, or has just left it; ``keys`` [rows, T, d_ff] entered the
    down projection of the block that ran last.
    """

    start: Tensor
    mask: Tensor
    positions: Tensor
    subject: Tensor  # [rows]
    texts: int  # rows per fact
    hidden: Tensor
    keys: Tensor

    def elsewhere(self, states: Tensor) -> Tensor:
        """``states`` [rows, T, n] at real tokens but the subject's last: [tokens, n]."""
        wanted = self.mask.bool() & (self.positions != self.subject.unsqueeze(1))
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
        self,
        requests: Sequence[EditRequest],
        values: Tensor,
        protected: Sequence[str] = (),
        progress: Progress = silent,
    ) -> dict[int, Tensor]:
        """Updates per layer, float32 ``[d, d_ff]`` on the CPU, whatever orientation the weights are stored in.

        Args:
            requests: the facts; those with the same number of variants stand together.
            values: their value vectors ``[facts, d]``.
            protected: texts of which every token resists the update.
            progress: told the layers done; may raise to interrupt (the weights are restored).

        Raises:
            NumericalFailure: the system is singular or an update is not finite.
        """
        layers = self._settings.layers
        saved = {layer: self._weight(layer).detach().clone() for layer in layers}
        try:
            return self._insert(requests, values, protected, progress)
        finally:
            for layer, weight in saved.items():
                self._weight(layer).copy_(weight)

    def _insert(
        self, requests: Sequence[EditRequest], values: Tensor, protected: Sequence[str], progress: Progress
    ) -> dict[int, Tensor]:
        subjects = [self._to_subject(facts) for facts in self._batches(requests)]
        # Texts that resist, with their weights; none are run where nothing of them counts.
        resisting: list[tuple[float, _Rows]] = []
        if self._settings.suffix_weight:
            resisting += [(self._settings.suffix_weight, self._whole(facts)) for facts in self._batches(requests)]
        if self._settings.protect_weight:
            resisting += [(self._settings.protect_weight, rows) for rows in self._plain(protected)]
        updates: dict[int, Tensor] = {}
        for number in range(self._settings.passes):
            # What one pass leaves of the residual, the next one spreads again.
            for rows in [*subjects, *(rows for _, rows in resisting)]:
                rows.hidden = rows.start
            self._pass(subjects, resisting, values, updates)
            progress("insertion", number + 1, self._settings.passes)
        return {layer: update.float().cpu() for layer, update in updates.items()}

    def _pass(
        self,
        subjects: Sequence[_Rows],
        resisting: Sequence[tuple[float, _Rows]],
        values: Tensor,
        updates: dict[int, Tensor],
    ) -> None:
        """Go through the layers once, adding to the weights and to ``updates``."""
        layers = self._settings.layers
        everything = [*subjects, *(rows for _, rows in resisting)]
        for index, layer in enumerate(layers):
            for rows in everything:
                self._run(rows, layer)
            keys = torch.cat([self._keys(batch) for batch in subjects])
            present = torch.cat([self._present_values(batch, layer) for batch in subjects])
            residual = (values.to(present) - present) / (len(layers) - index)
            update = self._solve(layer, keys, residual, self._resistance(layer, resisting))
            updates[layer] = updates[layer] + update if layer in updates else update
            change = self._write(layer, update)
            if index + 1 < len(layers):
                for rows in everything:
                    self._advance(rows, change, layer + 1, layers[index + 1])

    def _batches(self, requests: Sequence[EditRequest]) -> list[list[EditRequest]]:
        """Facts in order, in batches with the same number of texts per fact."""
        batches: list[list[EditRequest]] = []
        for request in requests:
            texts = len(self._contexts) + len(request.variants)
            if (
                not batches
                or len(batches[-1][0].variants) != len(request.variants)
                or (len(batches[-1]) + 1) * texts > ROWS_PER_BATCH
            ):
                batches.append([])
            batches[-1].append(request)
        return batches

    def _resistance(self, layer: int, resisting: Sequence[tuple[float, _Rows]]) -> Tensor:
        """What resists the update: ``lambda C``, shrunk, and the keys of texts that shall read as before."""
        moment = self._covariance[layer].to(self._lm.device) * self._settings.covariance_weight
        shrinkage = self._settings.shrinkage
        moment = moment.lerp(torch.eye(len(moment)).to(moment) * moment.trace() / len(moment), shrinkage)
        for weight, rows in resisting:
            keys = rows.elsewhere(rows.keys).float()
            moment += weight * (keys.T @ keys).double()
        return moment

    def _weight(self, layer: int) -> Tensor:
        return self._lm.architecture.down_projection_of(self._lm.model, layer).get_parameter("weight")

    def _blocks(self, first: int, last: int) -> Stack:
        return Stack(self._lm.model, self._lm.architecture, first, last, from_tokens=False)

    def _to_subject(self, facts: Sequence[EditRequest]) -> _Rows:
        """All texts of some facts, up to the subject's last token."""
        by_fact = [rewrite_rows(self._lm.tokenizer, self._contexts, fact) for fact in facts]
        rows = [row for rows in by_fact for row in rows]
        cut = [TokenRow(row.ids[: row.subject + 1], row.subject, row.target) for row in rows]
        return self._start(cut, texts=len(by_fact[0]))

    def _whole(self, facts: Sequence[EditRequest]) -> _Rows:
        """The bare prompts of some facts with their targets but the last token, which is only predicted."""
        rows = [rewrite_rows(self._lm.tokenizer, self._contexts[:1], fact)[0] for fact in facts]
        return self._start([TokenRow(row.ids[:-1], row.subject, row.target) for row in rows], texts=1)

    def _plain(self, texts: Sequence[str]) -> list[_Rows]:
        """Texts without a subject, in batches of alike length."""
        encoded = sorted(
            (tuple(self._lm.tokenizer(text)["input_ids"]) for text in texts), key=lambda ids: (len(ids), ids)
        )
        # No position is a subject's, so every token counts.
        rows = [TokenRow(ids, subject=-1, target=len(ids)) for ids in encoded]
        return [self._start(rows[i : i + ROWS_PER_BATCH], texts=1) for i in range(0, len(rows), ROWS_PER_BATCH)]

    def _start(self, rows: Sequence[TokenRow], texts: int) -> _Rows:
        """Hidden states entering the first edited block."""
        ids, mask = pad([row.ids for row in rows], self._lm.device)
        positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        subject = torch.tensor([row.subject for row in rows], device=ids.device)
        first = self._settings.layers[0]
        hidden = Stack(self._lm.model, self._lm.architecture, 0, first, from_tokens=True)(ids, mask, positions)
        return _Rows(hidden, mask, positions, subject, texts, hidden, hidden[..., :0])

    def _run(self, rows: _Rows, layer: int) -> None:
        """Run one edited block with the weights as they are."""
        with KeyRecorder(self._lm, [layer]) as recorder:
            rows.hidden = self._blocks(layer, layer + 1)(rows.hidden, rows.mask, rows.positions)
        rows.keys = recorder.recorded[layer]

    def _write(self, layer: int, update: Tensor) -> Tensor:
        """Add an update to a weight; what that changed in it, rounding included, float32 ``[d, d_ff]``."""
        weight = self._weight(layer)
        before = weight.float().clone()
        weight.copy_((before + self._lm.architecture.as_stored(update.float())).to(weight.dtype))
        return self._lm.architecture.as_stored(weight.float() - before)

    def _advance(self, rows: _Rows, change: Tensor, following: int, layer: int) -> None:
        """Bring the output of the block just edited up to date, and run the blocks up to the next one to edit."""
        # A block's output is linear in its down projection.
        rows.hidden = rows.hidden + (rows.keys.float() @ change.T).to(rows.hidden.dtype)
        if following < layer:
            rows.hidden = self._blocks(following, layer)(rows.hidden, rows.mask, rows.positions)

    def _keys(self, rows: _Rows) -> Tensor:
        """Keys ``[facts, d_ff]``: half the bare prompt's, half the mean of the other texts'."""
        keys = rows.at_subject(rows.keys).double()
        keys = keys.view(-1, rows.texts, keys.shape[-1])
        if rows.texts == 1:
            return keys[:, 0]
        return (keys[:, 0] + keys[:, 1:].mean(1)) / 2

    def _present_values(self, rows: _Rows, layer: int) -> Tensor:
        """Output of block L at the subject's last token of the bare prompt, as the weights are now: ``[facts, d]``."""
        bare = slice(None, None, rows.texts)
        out = rows.hidden[bare]
        if layer < self._settings.layers[-1]:
            stack = self._blocks(layer + 1, self._settings.layers[-1] + 1)
            out = stack(out, rows.mask[bare], rows.positions[bare])
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
