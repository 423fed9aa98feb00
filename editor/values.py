"""Value vectors: what the residual stream should say at a subject's last token.

For each fact, delta is optimised so that ``z = h + delta`` after block L makes the target likely
(Meng et al. 2022, section 4.2). Many facts at once:

- blocks up to L run once per fact: only what lies above depends on delta;
- tokens before the subject's last never see delta, so their keys and values are computed once;
- logits are computed only where a target token is predicted;
- texts of alike length run together, whatever fact they belong to;
- with ``turns`` a step reads only its share of each fact's texts, and Adam's momentum holds the others in mind (ours);
- Adam, clamp and stop are per fact; finished facts leave the batch.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from editor.errors import NumericalFailure
from editor.requests import EditRequest, TokenRow, essence_row, pad, rewrite_rows
from editor.stack import RangeCache, Stack

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from editor.language_model import LanguageModel
    from editor.settings import MemitSettings

ADAM_BETAS = (0.9, 0.999)
ADAM_EPSILON = 1e-8
COMPACT_BELOW = 0.9
"""Finished facts leave the batch when fewer than this share still run."""

TEXTS_PER_GROUP = 16
"""Fewer texts than this are not worth a pass of their own."""

LONGEST = 1.25
"""The longest suffix of a group over its shortest, where there are enough texts."""


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
        return _Suffixes(self.hidden[rows], self.mask[rows], self.positions[rows], self.cache.select(rows))

    def run(self, upper: Stack, delta: Tensor) -> Tensor:
        """Final hidden states ``[rows, S, d]`` with ``delta`` [rows, d] added at the subject's last token."""
        first = (self.hidden[:, :1].float() + delta.unsqueeze(1)).to(self.hidden.dtype)
        edited = torch.cat([first, self.hidden[:, 1:]], dim=1)
        return upper(edited, self.mask, self.positions, self.cache.select())


@dataclass
class _Texts:
    """Texts of alike length, of any facts of the batch, that are read in one turn.

    ``row``, ``at``, ``token`` name the N target tokens: which text, which suffix position predicts it, which id.
    ``share`` is one over the text's target tokens and the fact's texts in the turn.
    """

    suffixes: _Suffixes  # R rows
    fact: Tensor  # [R]
    row: Tensor  # [N]
    at: Tensor  # [N]
    token: Tensor  # [N]
    share: Tensor  # [N]

    def select(self, renumbered: Tensor) -> _Texts:
        """Only the texts of some facts: ``renumbered`` [facts] has their new numbers, and -1 for the others."""
        fact = renumbered[self.fact]
        kept = (fact >= 0).nonzero().squeeze(1)
        new_row = torch.full_like(self.fact, -1)
        new_row[kept] = torch.arange(len(kept), device=kept.device)
        tokens = new_row[self.row] >= 0
        return _Texts(
            self.suffixes.select(kept), fact[kept],
            new_row[self.row][tokens], self.at[tokens], self.token[tokens], self.share[tokens],
        )  # fmt: skip


@dataclass
class _Batch:
    """The facts still being optimised; every tensor's first dimension is facts."""

    index: Tensor  # [F] position in the caller's list
    initial: Tensor  # [F, d] h: output of block L at the subject's last token, bare prompt
    delta: Tensor  # [F, d]
    moment: Tensor  # [F, d] Adam's first moment
    square: Tensor  # [F, d] Adam's second moment
    low: Tensor  # [F] steps in a row that met a stop rule
    running: Tensor  # [F] bool
    turns: list[list[_Texts]]
    essence: _Suffixes  # F rows
    essence_before: Tensor  # [F, vocabulary] log-probabilities before any edit

    def keep(self, facts: Tensor) -> _Batch:
        """Only some facts (indices, ascending)."""
        renumbered = torch.full_like(self.index, -1)
        renumbered[facts] = torch.arange(len(facts), device=facts.device)
        turns = [[texts.select(renumbered) for texts in turn] for turn in self.turns]
        return _Batch(
            self.index[facts],
            self.initial[facts],
            self.delta[facts],
            self.moment[facts],
            self.square[facts],
            self.low[facts],
            self.running[facts],
            [[texts for texts in turn if len(texts.fact) > 0] for turn in turns],
            self.essence.select(facts),
            self.essence_before[facts],
        )


class ValueOptimiser:
    """Optimises value vectors for one model, one set of settings and one list of contexts.

    Args:
        language_model: the unmodified base.
        settings: MEMIT settings.
        contexts: context templates with one ``{}``; the first is the bare ``"{}"``.
    """

    def __init__(self, language_model: LanguageModel, settings: MemitSettings, contexts: Sequence[str]) -> None:
        self._lm = language_model
        self._settings = settings
        self._contexts = tuple(contexts)
        depth = language_model.depth
        top = settings.layers[-1] + 1
        self._lower = Stack(language_model.model, language_model.architecture, 0, top, from_tokens=True)
        self._upper = Stack(language_model.model, language_model.architecture, top, depth, from_tokens=False)

    def __call__(self, requests: Sequence[EditRequest], after_step: Callable[[int, int], None] | None = None) -> Tensor:
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
        loss, least = self._loss(batch, batch.turns[(step - 1) % settings.turns], delta)
        (gradient,) = torch.autograd.grad(loss.sum(), delta)
        if not bool(torch.isfinite(loss).all() & torch.isfinite(gradient).all()):
            raise NumericalFailure("the loss of a value vector is not finite: lower learning_rate or clamp")
        with torch.no_grad():
            delta = batch.delta.detach()
            batch.low = torch.where((loss < settings.loss_floor) | (least > settings.enough), batch.low + 1, 0)
            # Only when every text has had its turn.
            batch.running &= batch.low < settings.turns
            beta1, beta2 = ADAM_BETAS
            batch.moment.lerp_(gradient, 1 - beta1)
            batch.square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            scale = batch.square.sqrt() / (1 - beta2**step) ** 0.5 + ADAM_EPSILON
            moved = delta - settings.learning_rate / (1 - beta1**step) * batch.moment / scale
            length = moved.norm(dim=1, keepdim=True)
            longest = settings.clamp * batch.initial.norm(dim=1, keepdim=True)
            moved = torch.where(length > longest, moved * (longest / length), moved)
            batch.delta = torch.where(batch.running.unsqueeze(1), moved, delta)

    def _loss(self, batch: _Batch, turn: Sequence[_Texts], delta: Tensor) -> tuple[Tensor, Tensor]:
        """Each fact's loss, and the probability of its least likely target token: two of ``[F]``.

        The loss is NLL over the turn's texts + KL at the essence prompt + weight decay.
        """
        settings = self._settings
        states = [texts.suffixes.run(self._upper, delta[texts.fact])[texts.row, texts.at] for texts in turn]
        token, share, fact = (
            torch.cat(column) for column in zip(*((t.token, t.share, t.fact[t.row]) for t in turn), strict=True)
        )
        picked = self._log_probs(torch.cat(states)).gather(1, token.unsqueeze(1)).squeeze(1)
        nothing = torch.zeros_like(batch.initial[:, 0])
        nll = nothing.index_add(0, fact, -picked * share)
        least = nothing.scatter_reduce(0, fact, picked.detach(), "amin").exp()
        now = self._log_probs(batch.essence.run(self._upper, delta)[:, 0])
        # As in the reference: the expectation is under the present distribution, KL(now || before).
        divergence = (now.exp() * (now - batch.essence_before)).sum(1)
        decay = delta.norm(dim=1) / batch.initial.norm(dim=1) ** 2
        return nll + settings.kl_factor * divergence + settings.weight_decay * decay, least

    def _log_probs(self, hidden: Tensor) -> Tensor:
        """Log-probabilities in float32 over the vocabulary, last dimension."""
        return self._lm.head(hidden).float().log_softmax(-1)

    @torch.no_grad()
    def _prepare(self, requests: Sequence[EditRequest]) -> _Batch:
        """Everything that no step changes."""
        tokenizer = self._lm.tokenizer
        by_fact = [rewrite_rows(tokenizer, self._contexts, request) for request in requests]
        chosen = _turns(by_fact, self._settings.turns)
        groups = [_by_length(by_fact, texts) for texts in chosen]
        turns = [
            [self._texts(by_fact, group, Counter(fact for fact, _ in texts)) for group in turn]
            for turn, texts in zip(groups, chosen, strict=True)
        ]
        # The KL is taken at the subject's last token, so nothing after it matters.
        essence = [
            TokenRow(row.ids[: row.subject + 1], row.subject, row.target)
            for row in (essence_row(tokenizer, r.subject) for r in requests)
        ]
        essence_suffixes = self._suffixes(essence)
        initial = self._initial(turns[0], groups[0])
        nothing = torch.zeros_like(initial)
        before = self._log_probs(essence_suffixes.run(self._upper, nothing)[:, 0])
        return _Batch(
            index=torch.arange(len(requests), device=self._lm.device),
            initial=initial,
            delta=nothing.clone(),
            moment=nothing.clone(),
            square=nothing.clone(),
            low=torch.zeros(len(requests), dtype=torch.long, device=self._lm.device),
            running=torch.ones(len(requests), dtype=torch.bool, device=self._lm.device),
            turns=turns,
            essence=essence_suffixes,
            essence_before=before,
        )

    def _initial(self, texts: Sequence[_Texts], groups: Sequence[Sequence[tuple[int, int]]]) -> Tensor:
        """Output of block L at each fact's subject in its first text, the bare prompt: ``[F, d]``."""
        hidden = torch.cat([some.suffixes.hidden[:, 0].float() for some in texts])
        at = {text: number for number, text in enumerate(text for group in groups for text in group)}
        facts = sum(place == 0 for _, place in at)
        return hidden[torch.tensor([at[fact, 0] for fact in range(facts)], device=hidden.device)]

    def _texts(
        self, by_fact: Sequence[Sequence[TokenRow]], chosen: Sequence[tuple[int, int]], siblings: Mapping[int, int]
    ) -> _Texts:
        """The chosen texts, each named by its fact and its place; ``siblings`` counts a fact's texts in this turn."""
        rows = [by_fact[fact][place] for fact, place in chosen]
        named = [
            (number, row.target - 1 - row.subject + k, token, 1 / (len(row.ids) - row.target) / siblings[fact])
            for number, ((fact, _), row) in enumerate(zip(chosen, rows, strict=True))
            for k, token in enumerate(row.ids[row.target :])
        ]
        device = self._lm.device
        row, at, token, share = (torch.tensor(column, device=device) for column in zip(*named, strict=True))
        # The last target token is only predicted, never read.
        suffixes = self._suffixes([TokenRow(r.ids[:-1], r.subject, r.target) for r in rows])
        fact = torch.tensor([fact for fact, _ in chosen], device=device)
        return _Texts(suffixes, fact, row, at, token, share)

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


def _turns(by_fact: Sequence[Sequence[TokenRow]], turns: int) -> list[list[tuple[int, int]]]:
    """All texts as (fact, place), dealt out to turns by their place; the first turn has every fact's bare prompt.

    A fact with fewer texts than there are turns has one in each, over and over.
    """
    return [
        [
            (fact, place)
            for fact, rows in enumerate(by_fact)
            for place in range(len(rows))
            if place % min(turns, len(rows)) == turn % min(turns, len(rows))
        ]
        for turn in range(turns)
    ]


def _by_length(by_fact: Sequence[Sequence[TokenRow]], chosen: Sequence[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """Texts in groups of similar suffix length, so that little of a group is padding."""

    def suffix(text: tuple[int, int]) -> int:
        row = by_fact[text[0]][text[1]]
        return len(row.ids) - row.subject

    groups: list[list[tuple[int, int]]] = []
    for text in sorted(chosen, key=suffix):
        if not groups or (len(groups[-1]) >= TEXTS_PER_GROUP and suffix(text) > LONGEST * suffix(groups[-1][0])):
            groups.append([])
        groups[-1].append(text)
    return groups
