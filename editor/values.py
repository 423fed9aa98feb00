"""Value vectors: what the residual stream should say at a subject's last token.

For each subject, delta is optimised so that ``z = h + delta`` after block L makes the target likely
(Meng et al. 2022, section 4.2). Many subjects at once:

- blocks up to L run once: only what lies above depends on delta;
- tokens before the subject's last never see delta, so their keys and values are computed once (editor/suffixes.py);
- logits are computed only where a target token is predicted;
- texts are packed, so no step computes padding;
- facts about one subject share one delta, since they share its key (MEMIT-Merge);
- with ``turns`` a step reads only its share of each fact's texts, and Adam's momentum holds the others in mind (ours);
- Adam, clamp and stop are per subject; finished subjects leave the batch.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from editor.errors import NumericalFailure
from editor.memory import StepMemory, kept_bytes
from editor.packing import TOKENS_MULTIPLE, Packing
from editor.precision import chosen_precision, upper_copy
from editor.stack import Prefix, Stack
from editor.suffixes import Suffix, Suffixes, SuffixReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from editor.language_model import LanguageModel
    from editor.requests import EditRequest
    from editor.settings import MemitSettings

ADAM_BETAS = (0.9, 0.999)
ADAM_EPSILON = 1e-8
LONGER = 0.2
"""A value vector may be longer by this power of its fact's strength: four times the weight, a third longer."""
COMPACT_BELOW = 0.9
"""Finished subjects leave the batch when fewer than this share still run."""
LOGITS_AT_ONCE = 128
"""Rows of the vocabulary held at once: for 50,000 words in float32 26 MB, which the allocator reuses."""
STEPS_BETWEEN_CHECKS = 4
"""On an accelerator, how often the host asks which subjects still run: each time it has to wait for the device."""


@dataclass
class _Turn:
    """The texts that one step reads, packed; N target tokens, R texts."""

    packing: Packing
    prefix: Prefix
    hidden: Tensor  # [size, d] after block L, in the precision of the blocks above
    at_subject: Tensor  # [R, d] the same at the subject, float32 or better
    subject: Tensor  # [R] the token where each text's delta is added
    slot: Tensor  # [R] which of the units' [units, copies] deltas
    copies: int
    head: Tensor  # tokens whose logits are wanted: N of targets, filled up, then of essence prompts, filled up
    token: Tensor  # [N] target ids
    share: Tensor  # [N] one over the text's target tokens, the fact's texts in the turn and the unit's facts
    unit: Tensor  # [N]


@dataclass
class _Batch:
    """The units still being optimised; every tensor's first dimension is units."""

    index: Tensor  # [U] position among all units
    length: Tensor  # [U, 1] |h|: mean over the unit's facts
    longest: Tensor  # [U, 1] largest |delta|: the clamp, larger with the unit's strength
    delta: Tensor  # [U, d]
    moment: Tensor  # [U, d] Adam's first moment
    square: Tensor  # [U, d] Adam's second moment
    low: Tensor  # [U] steps in a row that met a stop rule
    running: Tensor  # [U] bool
    essence_before: Tensor  # [U, vocabulary] log-probabilities before any edit
    turns: list[_Turn]

    def keep(self, units: Tensor, turns: list[_Turn]) -> _Batch:
        """Only some units (indices, ascending), with their turns."""
        return _Batch(
            self.index[units], self.length[units], self.longest[units], self.delta[units], self.moment[units],
            self.square[units], self.low[units], self.running[units], self.essence_before[units], turns,
        )  # fmt: skip


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
        top = settings.layers[-1] + 1
        upper = upper_copy(language_model, top, chosen_precision(language_model, settings.precision))
        self._read = SuffixReader(language_model, upper, contexts, top)
        self._upper = Stack(upper.model, upper.architecture, top, upper.depth, from_tokens=False)
        self._upper_model = upper
        self._dtype = upper.model.get_output_embeddings().weight.dtype

    def __call__(self, requests: Sequence[EditRequest], after_step: Callable[[int, int], None] | None = None) -> Tensor:
        """Value vectors ``z`` as float32 ``[facts, d]``; facts about one subject share a delta.

        Args:
            requests: the facts, all optimised together; none about a subject has a sibling elsewhere.
            after_step: called with (step, steps) between steps; may raise to interrupt.

        Raises:
            RequestInvalid: a target is too long.
            NumericalFailure: a loss or gradient is not finite.
        """
        units = by_subject(requests)
        suffixes = self._read(units)
        initial = _initial(suffixes, len(requests))
        unit_of = torch.empty(len(requests), dtype=torch.long)
        for number, unit in enumerate(units):
            unit_of[[index for index, _ in unit]] = number
        strongest = [max(request.strength for _, request in unit) for unit in units]
        strength = torch.tensor([strength**LONGER for strength in strongest]).to(initial)
        deltas = self._optimise(suffixes, initial, unit_of.to(initial.device), strength, after_step)
        return initial + deltas[unit_of.to(initial.device)]

    def memory(self, requests: Sequence[EditRequest]) -> StepMemory:
        """What a step takes, counted on some facts (of the longest kind, so that others take no more)."""
        units = by_subject(requests)
        suffixes = self._read(units)
        turns = self._turns(suffixes, range(len(units)))
        turn = max(turns, key=lambda turn: turn.packing.tokens)
        model = self._upper_model.model
        weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        delta = torch.zeros(len(units), turn.hidden.shape[1], device=self._lm.device, requires_grad=True)
        kept = kept_bytes(lambda: self._wanted_states(turn, delta), weights)
        kept += sum(each.prefix.nbytes + each.hidden.nbytes for each in turns)
        vocabulary, itemsize = len(model.get_output_embeddings().weight), turn.hidden.element_size()
        return StepMemory(
            per_token=-(-kept // turn.packing.tokens),
            per_subject=4 * vocabulary,
            fixed=LOGITS_AT_ONCE * vocabulary * (2 * itemsize + 3 * 4),
        )

    def _optimise(
        self,
        suffixes: Suffixes,
        initial: Tensor,
        unit_of: Tensor,
        strength: Tensor,
        after_step: Callable[[int, int], None] | None,
    ) -> Tensor:
        """Each unit's delta, ``[units, d]``."""
        batch = self._begin(suffixes, initial, unit_of, strength)
        deltas = torch.zeros_like(batch.delta)
        steps = self._settings.steps
        every = 1 if self._lm.device.type == "cpu" else STEPS_BETWEEN_CHECKS
        sound = torch.ones((), dtype=torch.bool, device=self._lm.device)
        for step in range(1, steps):
            sound &= self._step(batch, step)
            if after_step is not None:
                after_step(step, steps)
            if step % every and step < steps - 1:
                continue
            if not bool(sound):
                raise NumericalFailure("the loss of a value vector is not finite: lower learning_rate or clamp")
            alive = batch.running.nonzero().squeeze(1)
            if len(alive) == 0:
                break
            if len(alive) < COMPACT_BELOW * len(batch.running):
                deltas[batch.index] = batch.delta
                batch = batch.keep(alive, self._turns(suffixes, batch.index[alive].tolist()))
        deltas[batch.index] = batch.delta
        return deltas

    def _step(self, batch: _Batch, step: int) -> Tensor:
        """One Adam step with projection for every unit that still runs, in place; whether all stayed finite."""
        settings = self._settings
        turn = batch.turns[(step - 1) % settings.turns]
        delta = batch.delta.requires_grad_(True)
        states = self._wanted_states(turn, delta)
        loss, least, gradient_of_states = self._loss(batch, turn, states.detach())
        (gradient,) = torch.autograd.grad(states, delta, gradient_of_states)
        with torch.no_grad():
            delta = batch.delta.detach()
            size = delta.norm(dim=1, keepdim=True)
            decay = settings.weight_decay / batch.length.square()
            loss += (decay * size).squeeze(1)
            gradient = gradient + decay * delta / torch.where(size > 0, size, 1)
            batch.low = torch.where((loss < settings.loss_floor) | (least > settings.enough), batch.low + 1, 0)
            # Only when every text has had its turn.
            batch.running &= batch.low < settings.turns
            beta1, beta2 = ADAM_BETAS
            batch.moment.lerp_(gradient, 1 - beta1)
            batch.square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            scale = batch.square.sqrt() / (1 - beta2**step) ** 0.5 + ADAM_EPSILON
            moved = delta - settings.learning_rate / (1 - beta1**step) * batch.moment / scale
            length = moved.norm(dim=1, keepdim=True)
            moved = torch.where(length > batch.longest, moved * (batch.longest / length), moved)
            batch.delta = torch.where(batch.running.unsqueeze(1), moved, delta)
            return torch.isfinite(loss).all() & torch.isfinite(gradient).all()

    def _wanted_states(self, turn: _Turn, delta: Tensor) -> Tensor:
        """Final hidden states where a turn wants logits."""
        # Copies first: gradients of a unit's texts are then added in one order, whatever the device.
        spread = delta.unsqueeze(1).expand(-1, turn.copies, -1).reshape(-1, delta.shape[1])[turn.slot]
        at_subject = turn.at_subject + spread
        edited = turn.hidden.index_copy(0, turn.subject, at_subject.to(turn.hidden.dtype))
        return self._upper(edited, turn.packing, turn.prefix)[turn.head]

    def _loss(self, batch: _Batch, turn: _Turn, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The loss without its decay, and how it changes with the states.

        The loss is NLL over the turn's texts + KL at the essence prompt. Logits take much memory, so their gradient is
        worked out here, a few at a time, and never kept.

        Returns:
            The loss and the probability of the least likely target token per unit, ``[U]`` each; the gradient by the
            states, in their shape.
        """
        count, dtype = len(turn.token), batch.delta.dtype
        loss = torch.zeros_like(batch.length[:, 0])
        gradient = torch.zeros_like(states)
        picked = torch.empty(count, dtype=dtype, device=states.device)
        for rows, part in _parts(0, count):
            at, logits = self._logits(states[rows])
            log_probs = logits.detach().to(dtype)[: part.stop - part.start].log_softmax(-1)
            token, share = turn.token[part].unsqueeze(1), turn.share[part].unsqueeze(1)
            picked[part] = log_probs.gather(1, token).squeeze(1)
            by_logit = log_probs.exp_().mul_(share).scatter_add_(1, token, -share)
            gradient[rows] = _gradient(logits, at, by_logit)
        loss.index_add_(0, turn.unit, -picked * turn.share)
        least = torch.zeros_like(loss).scatter_reduce(0, turn.unit, picked, "amin").exp()
        for rows, units in _parts(_filled(count), len(loss)):
            at, logits = self._logits(states[rows])
            now = logits.detach().to(dtype)[: units.stop - units.start].log_softmax(-1)
            change = now - batch.essence_before[units]
            # As in the reference: the expectation is under the present distribution, KL(now || before).
            probability = now.exp_()
            divergence = (probability * change).sum(1, keepdim=True)
            loss[units] += self._settings.kl_factor * divergence.squeeze(1)
            by_logit = probability.mul_(change.sub_(divergence)).mul_(self._settings.kl_factor)
            gradient[rows] = _gradient(logits, at, by_logit)
        return loss, least, gradient

    def _logits(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """States as a leaf, and their logits."""
        at = states.detach().requires_grad_(True)
        with torch.enable_grad():
            return at, self._upper_model.head(at)

    @torch.no_grad()
    def _begin(self, suffixes: Suffixes, initial: Tensor, unit_of: Tensor, strength: Tensor) -> _Batch:
        """Everything that no step changes, and delta = 0."""
        units = len(strength)
        turns = self._turns(suffixes, range(units))
        lengths = initial.norm(dim=1)
        facts = torch.bincount(unit_of, minlength=units)
        nothing = torch.zeros(units, initial.shape[1], dtype=initial.dtype, device=initial.device)
        first = turns[0]
        states = self._wanted_states(first, nothing)
        before = torch.cat(
            [
                self._upper_model.head(states[rows])[: part.stop - part.start].to(nothing.dtype).log_softmax(-1)
                for rows, part in _parts(_filled(len(first.token)), units)
            ]
        )
        length = (lengths.new_zeros(units).index_add(0, unit_of, lengths) / facts).unsqueeze(1)
        return _Batch(
            index=torch.arange(units, device=initial.device),
            length=length,
            longest=self._settings.clamp * length * strength.unsqueeze(1),
            delta=nothing.clone(),
            moment=nothing.clone(),
            square=nothing.clone(),
            low=torch.zeros(units, dtype=torch.long, device=initial.device),
            running=torch.ones(units, dtype=torch.bool, device=initial.device),
            essence_before=before,
            turns=turns,
        )

    def _turns(self, suffixes: Suffixes, units: Sequence[int]) -> list[_Turn]:
        """The turns of some units, which are numbered anew."""
        number = {unit: index for index, unit in enumerate(units)}
        texts = [text for text in suffixes.texts if text.unit in number]
        many = Counter(text.request for text in texts if text.place >= 0)
        return [
            self._turn(suffixes, number, [text for text in texts if _reads(text, turn, self._settings.turns, many)])
            for turn in range(self._settings.turns)
        ]

    def _turn(self, suffixes: Suffixes, number: dict[int, int], texts: Sequence[Suffix]) -> _Turn:
        device = self._lm.device
        packing = Packing([text.segment for text in texts], device)
        siblings = Counter(text.request for text in texts if text.place >= 0)
        facts = Counter(unit for unit, _ in {(text.unit, text.request) for text in texts})
        nth: Counter[int] = Counter()
        slots: list[tuple[int, int]] = []
        named: list[tuple[int, int, float, int]] = []
        essence = [0] * len(number)
        for text, start in zip(texts, packing.starts, strict=True):
            unit = number[text.unit]
            slots.append((unit, nth[unit]))
            nth[unit] += 1
            if text.place < 0:
                essence[unit] = start
                continue
            share = 1 / len(text.target) / siblings[text.request] / facts[text.unit]
            named += [(start + text.first + k, token, share, unit) for k, token in enumerate(text.target)]
        copies = max(nth.values())
        wanted = [at for at, *_ in named]
        wanted += [0] * (_filled(len(wanted)) - len(wanted))
        wanted += essence + [0] * (_filled(len(essence)) - len(essence))
        hidden = _gathered(suffixes.hidden, texts, packing)
        subject = torch.tensor(packing.starts, device=device)
        precise = torch.promote_types(hidden.dtype, torch.float32)
        return _Turn(
            packing,
            Prefix(suffixes.store, packing, self._upper.first, self._upper.last),
            hidden.to(self._dtype),
            hidden[subject].to(precise),
            subject,
            torch.tensor([unit * copies + k for unit, k in slots], device=device),
            copies,
            torch.tensor(wanted, device=device),
            torch.tensor([token for _, token, _, _ in named], device=device),
            torch.tensor([share for _, _, share, _ in named], device=device, dtype=precise),
            torch.tensor([unit for *_, unit in named], device=device),
        )


def _filled(rows: int) -> int:
    return -(-rows // TOKENS_MULTIPLE) * TOKENS_MULTIPLE


def _parts(begin: int, count: int) -> Iterator[tuple[slice, slice]]:
    """Rows of states from ``begin`` on, a few at a time with filler, and which of the ``count`` real ones they are."""
    for start in range(0, count, LOGITS_AT_ONCE):
        stop = min(start + LOGITS_AT_ONCE, count)
        yield slice(begin + start, begin + _filled(stop)), slice(start, stop)


def _gradient(logits: Tensor, at: Tensor, by_logit: Tensor) -> Tensor:
    """The gradient by the states from that by the logits of the real rows."""
    by_logit = functional.pad(by_logit.to(logits.dtype), (0, 0, 0, len(logits) - len(by_logit)))
    (gradient,) = torch.autograd.grad(logits, at, by_logit)
    return gradient


def by_subject(requests: Sequence[EditRequest]) -> list[list[tuple[int, EditRequest]]]:
    """Numbered requests, those about one subject together, in the order in which subjects first occur."""
    units: dict[str, list[tuple[int, EditRequest]]] = {}
    for index, request in enumerate(requests):
        units.setdefault(request.subject, []).append((index, request))
    return list(units.values())


def _initial(suffixes: Suffixes, requests: int) -> Tensor:
    """Output of block L at each fact's subject in the bare prompt: ``[facts, d]``, float32 or better."""
    start = {text.request: text.start for text in suffixes.texts if text.place == 0}
    at = torch.tensor([start[request] for request in range(requests)], device=suffixes.hidden.device)
    hidden = suffixes.hidden[at]
    return hidden.to(torch.promote_types(hidden.dtype, torch.float32))


def _reads(text: Suffix, turn: int, turns: int, many: Counter[int]) -> bool:
    """Whether a turn reads a text: essence prompts always, a fact's texts in turn by their place.

    The first turn has every bare prompt. A fact with fewer texts than there are turns has one in each, over and over.
    """
    if text.place < 0:
        return True
    shares = min(turns, many[text.request])
    return text.place % shares == turn % shares


def _gathered(hidden: Tensor, texts: Sequence[Suffix], packing: Packing) -> Tensor:
    """The texts' hidden states as a packing has them, ``[size, d]``; filler repeats the first token."""
    at = [text.start + k for text in texts for k in range(text.segment.length)]
    at += [0] * (packing.size - len(at))
    return hidden[torch.tensor(at, device=hidden.device)]
