"""Value vectors: what the residual stream should say at a subject's last token.

For each fact, delta is optimised so that ``z = h + delta`` after block L makes the target likely
(Meng et al. 2022, section 4.2). Many facts at once:

- blocks up to L run once per fact: only what lies above depends on delta;
- tokens before the subject's last never see delta, so their keys and values are computed once;
- logits are computed only where a target token is predicted;
- Adam, clamp and stop are per fact; finished facts leave the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from editor.errors import NumericalFailure
from editor.requests import EditRequest, TokenRow, essence_row, pad, rewrite_row
from editor.stack import RangeCache, Stack

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from editor.language_model import LanguageModel
    from editor.settings import MemitSettings

ADAM_BETAS = (0.9, 0.999)
ADAM_EPSILON = 1e-8
COMPACT_BELOW = 0.75
"""Finished facts leave the batch when fewer than this share still run."""


@dataclass
class _Suffixes:
    """Texts from the subject's last token on, with everything before it in a cache.

    ``hidden`` [rows, S, d] after block L; ``mask`` [rows, P + S]; ``positions`` [rows, S].
    """

    hidden: Tensor
    mask: Tensor
    positions: Tensor
    cache: RangeCache

    def select(self, rows: Tensor) -> _Suffixes:
        return _Suffixes(
            self.hidden[rows], self.mask[rows], self.positions[rows], self.cache.select(rows)
        )

    def run(self, upper: Stack, delta: Tensor) -> Tensor:
        """Final hidden states ``[rows, S, d]`` with ``delta`` [rows, d] added at the subject's last token."""
        first = (self.hidden[:, :1].float() + delta.unsqueeze(1)).to(self.hidden.dtype)
        edited = torch.cat([first, self.hidden[:, 1:]], dim=1)
        return upper(edited, self.mask, self.positions, self.cache.select())


@dataclass
class _Batch:
    """The facts still being optimised; every tensor's first dimension is facts or facts x contexts."""

    index: Tensor  # [F] position in the caller's list
    initial: Tensor  # [F, d] h: output of block L at the subject's last token, bare prompt
    delta: Tensor  # [F, d]
    moment: Tensor  # [F, d] Adam's first moment
    square: Tensor  # [F, d] Adam's second moment
    running: Tensor  # [F] bool
    rewrite: _Suffixes  # F x C rows, fact-major
    essence: _Suffixes  # F rows
    essence_before: Tensor  # [F, vocabulary] log-probabilities before any edit
    predict_at: Tensor  # [F x C, T] suffix positions whose logits predict target tokens
    targets: Tensor  # [F x C, T] token ids
    target_mask: Tensor  # [F x C, T]

    def keep(self, facts: Tensor) -> _Batch:
        """Only some facts (indices)."""
        contexts = self.targets.shape[0] // self.delta.shape[0]
        rows = (facts.unsqueeze(1) * contexts + torch.arange(contexts, device=facts.device)).flatten()
        return _Batch(
            self.index[facts],
            self.initial[facts],
            self.delta[facts],
            self.moment[facts],
            self.square[facts],
            self.running[facts],
            self.rewrite.select(rows),
            self.essence.select(facts),
            self.essence_before[facts],
            self.predict_at[rows],
            self.targets[rows],
            self.target_mask[rows],
        )


class ValueOptimiser:
    """Optimises value vectors for one model, one set of settings and one list of contexts.

    Args:
        language_model: the unmodified base.
        settings: MEMIT settings.
        contexts: context templates with one ``{}``; the first is the bare ``"{}"``.
    """

    def __init__(
        self, language_model: LanguageModel, settings: MemitSettings, contexts: Sequence[str]
    ) -> None:
        self._lm = language_model
        self._settings = settings
        self._contexts = tuple(contexts)
        depth = language_model.depth
        top = settings.layers[-1] + 1
        self._lower = Stack(language_model.model, language_model.architecture, 0, top, from_tokens=True)
        self._upper = Stack(language_model.model, language_model.architecture, top, depth, from_tokens=False)

    def __call__(
        self, requests: Sequence[EditRequest], after_step: Callable[[int, int], None] | None = None
    ) -> Tensor:
        """Value vectors ``z`` as float32 ``[facts, d]``.

        Args:
            requests: the facts, all optimised together.
            after_step: called with (step, steps) between steps; may raise to interrupt.

        Raises:
            RequestInvalid: a target is too long.
            NumericalFailure: a loss or gradient is not finite.
        """
        batch = self._prepare(requests)
        values = torch.empty_like(batch.initial)
        steps = self._settings.steps
        for step in range(1, steps):
            self._step(batch, step)
            if after_step is not None:
                after_step(step, steps)
            alive = batch.running.nonzero().squeeze(1)
            if len(alive) == 0:
                break
            if len(alive) < COMPACT_BELOW * len(batch.running):
                values[batch.index] = batch.initial + batch.delta
                batch = batch.keep(alive)
        values[batch.index] = batch.initial + batch.delta
        return values

    def _step(self, batch: _Batch, step: int) -> None:
        """One Adam step with projection for every fact that still runs, in place."""
        settings = self._settings
        delta = batch.delta.requires_grad_(True)
        loss = self._loss(batch, delta)
        (gradient,) = torch.autograd.grad(loss.sum(), delta)
        if not bool(torch.isfinite(loss).all() & torch.isfinite(gradient).all()):
            raise NumericalFailure("the loss of a value vector is not finite: lower learning_rate or clamp")
        with torch.no_grad():
            delta = batch.delta.detach()
            batch.running &= loss >= settings.loss_floor
            beta1, beta2 = ADAM_BETAS
            batch.moment.lerp_(gradient, 1 - beta1)
            batch.square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            scale = batch.square.sqrt() / (1 - beta2**step) ** 0.5 + ADAM_EPSILON
            moved = delta - settings.learning_rate / (1 - beta1**step) * batch.moment / scale
            length = moved.norm(dim=1, keepdim=True)
            longest = settings.clamp * batch.initial.norm(dim=1, keepdim=True)
            moved = torch.where(length > longest, moved * (longest / length), moved)
            batch.delta = torch.where(batch.running.unsqueeze(1), moved, delta)

    def _loss(self, batch: _Batch, delta: Tensor) -> Tensor:
        """Loss of each fact ``[F]``: NLL over contexts + KL at the essence prompt + weight decay."""
        settings = self._settings
        facts, contexts = delta.shape[0], len(self._contexts)
        final = batch.rewrite.run(self._upper, delta.repeat_interleave(contexts, dim=0))
        rows = torch.arange(final.shape[0], device=final.device).unsqueeze(1)
        log_probs = self._log_probs(final[rows, batch.predict_at])
        picked = log_probs.gather(2, batch.targets.unsqueeze(2)).squeeze(2) * batch.target_mask
        nll = -(picked.sum(1) / batch.target_mask.sum(1)).view(facts, contexts).mean(1)
        now = self._log_probs(batch.essence.run(self._upper, delta)[:, 0])
        # As in the reference: the expectation is under the present distribution, KL(now || before).
        divergence = (now.exp() * (now - batch.essence_before)).sum(1)
        decay = delta.norm(dim=1) / batch.initial.norm(dim=1) ** 2
        return nll + settings.kl_factor * divergence + settings.weight_decay * decay

    def _log_probs(self, hidden: Tensor) -> Tensor:
        """Log-probabilities in float32 over the vocabulary, last dimension."""
        return self._lm.head(hidden).float().log_softmax(-1)

    @torch.no_grad()
    def _prepare(self, requests: Sequence[EditRequest]) -> _Batch:
        """Everything that no step changes."""
        tokenizer = self._lm.tokenizer
        device = self._lm.device
        rewrite = [rewrite_row(tokenizer, context, r) for r in requests for context in self._contexts]
        # The KL is taken at the subject's last token, so nothing after it matters.
        essence = [TokenRow(row.ids[: row.subject + 1], row.subject, row.target)
                   for row in (essence_row(tokenizer, r.subject) for r in requests)]
        # The last target token is only predicted, never read.
        rewrite_suffixes = self._suffixes([TokenRow(r.ids[:-1], r.subject, r.target) for r in rewrite])
        essence_suffixes = self._suffixes(essence)
        initial = rewrite_suffixes.hidden[:: len(self._contexts), 0].float()
        nothing = torch.zeros_like(initial)
        before = self._log_probs(essence_suffixes.run(self._upper, nothing)[:, 0])
        targets, mask = pad([row.ids[row.target :] for row in rewrite], device)
        first = torch.tensor([row.target - 1 - row.subject for row in rewrite], device=device)
        steps = torch.arange(targets.shape[1], device=device)
        return _Batch(
            index=torch.arange(len(requests), device=device),
            initial=initial,
            delta=nothing.clone(),
            moment=nothing.clone(),
            square=nothing.clone(),
            running=torch.ones(len(requests), dtype=torch.bool, device=device),
            rewrite=rewrite_suffixes,
            essence=essence_suffixes,
            essence_before=before,
            predict_at=(first.unsqueeze(1) + steps) * mask,
            targets=targets,
            target_mask=mask,
        )

    def _suffixes(self, rows: Sequence[TokenRow]) -> _Suffixes:
        """Run blocks up to L over whole texts and the blocks above over what precedes the subject's last token."""
        device = self._lm.device
        ids, mask = pad([row.ids for row in rows], device)
        positions = torch.arange(ids.shape[1], device=device).expand_as(ids)
        hidden = self._lower(ids, mask, positions)
        subject = torch.tensor([row.subject for row in rows], device=device)
        length = torch.tensor([len(row.ids) for row in rows], device=device)
        row_index = torch.arange(len(rows), device=device).unsqueeze(1)

        before = torch.arange(int(subject.max()), device=device).expand(len(rows), -1)
        before_mask = (before < subject.unsqueeze(1)).long()
        cache = self._upper.cache()
        if before.shape[1] > 0:
            # A row without prefix may not be masked whole (softmax over nothing); it is masked later.
            visible = before_mask.clone()
            visible[:, 0] = 1
            self._upper(hidden[:, : before.shape[1]], visible, before, cache)

        after = subject.unsqueeze(1) + torch.arange(int((length - subject).max()), device=device)
        after_mask = (after < length.unsqueeze(1)).long()
        after = after.clamp(max=ids.shape[1] - 1)
        return _Suffixes(hidden[row_index, after], torch.cat([before_mask, after_mask], 1), after, cache)

