"""Plain, serial MEMIT (Meng et al. 2022, arXiv 2210.07229): oracle of the tests, baseline of the benchmarks.

Written from the mathematics. Once compared with the public code, run in float64 on the tiny models of the
tests: keys, values and updates agreed to rounding. It shares no code with the packages under test. One fact
is optimised at a time; every pass is a full forward pass of the model over every token, layer and context;
nothing is cached; the optimiser is ``torch.optim.Adam``.

Notation: ``L`` is the last edited layer, ``d`` the width of the residual stream, ``d_ff`` the input width of
the down projection. Rows of a batch are padded on the right, which a causal model cannot see.

Where it knowingly departs from the public code: prompt and target are tokenised together and the subject's
last token is found by character offsets (the code tokenises the pieces apart, and counts a start token more
than once); blocks that return a bare tensor are handled; C stays in float64 (the code rounds it to float32).
"""

from __future__ import annotations

import contextlib
import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from transformers import PreTrainedModel, PreTrainedTokenizerFast

ESSENCE = " is a"  # after the subject
ROWS_AT_ONCE = 32  # rows in one forward pass when keys and outputs are read (the reference takes 128)


# ---------------------------------------------------------------------------------------------- what is asked


@dataclass(frozen=True)
class SerialRequest:
    """One fact: ``prompt`` holds exactly one ``{}`` for the subject; ``target`` has no leading space."""

    prompt: str
    subject: str
    target: str


@dataclass(frozen=True)
class SerialSettings:
    """Hyper-parameters under the reference's meanings; the defaults are those published for GPT-J."""

    layers: tuple[int, ...]
    steps: int = 25  # evaluations of the loss; at most steps - 1 of them are followed by an Adam step
    lr: float = 0.5
    weight_decay: float = 0.5
    kl_factor: float = 0.0625
    clamp: float = 0.75
    mom2_weight: float = 15000
    loss_floor: float = 5e-2
    enough: float = 1.0  # not in the reference: stop when every target token is more likely than this everywhere
    turns: int = 1  # not in the reference: a step reads one of this many shares of the contexts, in turn

    def __post_init__(self) -> None:
        if not self.layers or list(self.layers) != sorted(set(self.layers)):
            raise ValueError(f"layers must be ascending, distinct and not empty: {self.layers}")
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1: {self.steps}")


# -------------------------------------------------------------------------------------------- text and tokens


class Row(NamedTuple):
    """One tokenised sequence: its input ids, the subject's last token, and the target's ids.

    With a target of m tokens the input stops before the last of them, so that the last m positions of the
    input are those which predict the target.
    """

    ids: list[int]
    lookup: int
    target: list[int]


def _halves(template: str) -> tuple[str, str]:
    if template.count("{}") != 1:
        raise ValueError(f"need exactly one {{}}: {template!r}")
    before, _, after = template.partition("{}")
    return before, after


def fill(context: str, prompt: str) -> tuple[str, str]:
    """Put the prompt into the context; return the text before and after the subject.

    The subject itself is never scanned for braces, and braces other than ``{}`` stay as they are.
    """
    (outer_before, outer_after), (before, after) = _halves(context), _halves(prompt)
    return outer_before + before, after + outer_after


def _last_token_at(offsets: Sequence[tuple[int, int]], position: int) -> int:
    """The last token that covers this character (a character of several bytes may be spread over tokens)."""
    covering = [i for i, (start, end) in enumerate(offsets) if start <= position < end]
    if not covering:
        raise ValueError(f"no token covers character {position}")
    return covering[-1]


def encode(tokenizer: PreTrainedTokenizerFast, before: str, subject: str, after: str, target: str = "") -> Row:
    """Tokenise ``before + subject + after``, and with a target one space and the target, as one text."""
    prompt = before + subject + after
    encoded = tokenizer(prompt + (f" {target}" if target else ""), return_offsets_mapping=True)
    ids, offsets = list(encoded["input_ids"]), list(encoded["offset_mapping"])
    lookup = _last_token_at(offsets, len(before) + len(subject.rstrip()) - 1)
    if not target:
        return Row(ids, lookup, [])
    if any(start < len(prompt) < end for start, end in offsets):
        raise ValueError(f"a token lies across the end of the prompt: {prompt!r} + {' ' + target!r}")
    places = [i for i, (start, _) in enumerate(offsets) if start >= len(prompt)]
    if not places or places != list(range(places[0], places[-1] + 1)):
        raise ValueError(f"the target has no run of tokens of its own: {prompt!r} + {' ' + target!r}")
    if lookup >= places[0]:
        raise ValueError(f"the target begins before the subject's last token: {prompt!r} + {' ' + target!r}")
    return Row(ids[: places[-1]], lookup, [ids[i] for i in places])


def request_row(tokenizer: PreTrainedTokenizerFast, context: str, request: SerialRequest, *, with_target: bool) -> Row:
    """Tokenise the request's prompt within the context, with the target behind it or without."""
    before, after = fill(context, request.prompt)
    return encode(tokenizer, before, request.subject, after, request.target if with_target else "")


def subject_last_token(
    tokenizer: PreTrainedTokenizerFast, before: str, subject: str, after: str, target: str = ""
) -> int:
    """Index of the subject's last token in ``before + subject + after [+ " " + target]``, BOS counted."""
    return encode(tokenizer, before, subject, after, target).lookup


# ---------------------------------------------------------------------------------- the model and its modules


def _block(model: PreTrainedModel, layer: int) -> nn.Module:
    for path in ("transformer.h", "gpt_neox.layers", "model.layers"):  # GPT-2 and GPT-J, GPT-NeoX, Llama and its kin
        with contextlib.suppress(AttributeError):
            return model.get_submodule(path)[layer]
    raise ValueError(f"no decoder blocks in {type(model).__name__}")


def _down_projection(model: PreTrainedModel, layer: int) -> nn.Module:
    mlp = _block(model, layer).mlp
    names = ("c_proj", "fc_out", "dense_4h_to_h", "down_proj")
    return next(getattr(mlp, name) for name in names if hasattr(mlp, name))


def oriented(module: nn.Module, matrix: Tensor) -> Tensor:
    """Turn a matrix [output, input] into the orientation this module stores (its own inverse).

    ``nn.Linear`` stores [output, input], the ``Conv1D`` of GPT-2 [input, output]. Shapes alone would not
    tell them apart where the matrix is square.
    """
    return matrix if isinstance(module, nn.Linear) else matrix.T


@contextlib.contextmanager
def _frozen(model: PreTrainedModel) -> Iterator[None]:
    """No parameter asks for a gradient within; what was asked before is asked again afterwards."""
    if model.training:
        raise ValueError("the model must be in eval mode")
    asked = [p for p in model.parameters() if p.requires_grad]
    for p in asked:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in asked:
            p.requires_grad_(True)


def _forward(model: PreTrainedModel, rows: Sequence[Row]) -> Tensor:
    """Logits [row, position, vocabulary] of one full pass over the rows, padded on the right."""
    longest = max(len(row.ids) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row.ids)] = torch.tensor(row.ids)
    # No mask: nothing looks to the right, and a masked padding would look at nothing within a sliding window.
    return model(input_ids=ids.to(model.device), use_cache=False).logits


def _hidden(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Blocks return the hidden states alone (transformers 5) or first in a tuple (transformers 4)."""
    return output[0] if isinstance(output, tuple) else output


@torch.no_grad()
def _read(model: PreTrainedModel, module: nn.Module, rows: Sequence[Row], *, inputs: bool) -> Tensor:
    """The module's input or output [row, width] at each row's lookup position."""
    seen: list[Tensor] = []

    def look(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor | tuple[Tensor, ...]) -> None:
        states = args[0] if inputs else _hidden(output)
        seen.extend(states[i, row.lookup].clone() for i, row in enumerate(chunk))

    handle = module.register_forward_hook(look)
    try:
        for start in range(0, len(rows), ROWS_AT_ONCE):
            chunk = rows[start : start + ROWS_AT_ONCE]
            _forward(model, chunk)
    finally:
        handle.remove()
    return torch.stack(seen)


# ------------------------------------------------------------------------------------------- the value vector


class Losses(NamedTuple):
    """The terms of the editing loss, each already multiplied by its factor; ``total`` is their sum."""

    total: Tensor
    nll: Tensor
    kl: Tensor
    decay: Tensor


class ValueObjective:
    """The editing loss of one fact as a function of delta.

    The first evaluation must be at delta = 0: it records ``h`` and the distribution the KL term keeps to.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        request: SerialRequest,
        settings: SerialSettings,
        contexts: Sequence[str],
    ) -> None:
        _check_contexts(contexts)
        self.model, self.settings = model, settings
        self.block = _block(model, settings.layers[-1])
        self.texts = [request_row(tokenizer, context, request, with_target=True) for context in contexts]
        self.essence = encode(tokenizer, "", request.subject, ESSENCE)
        self.dtype = torch.promote_types(model.dtype, torch.float32)
        self.h: Tensor | None = None
        self.initial: Tensor | None = None  # log-probabilities [1, vocabulary] at the essence prompt's lookup
        self.least = 0.0  # probability of the least likely target token at the last evaluation

    def zero(self) -> Tensor:
        """A delta of zeros that asks for a gradient."""
        width = self.model.config.hidden_size
        return torch.zeros(width, dtype=self.dtype, device=self.model.device, requires_grad=True)

    def __call__(self, delta: Tensor, step: int = 0) -> Losses:
        """Evaluate the loss of a step's share of the texts; the model must be frozen if a gradient is to be taken."""
        shares = min(self.settings.turns, len(self.texts))
        rows = self.texts[step % self.settings.turns % shares :: shares]
        all_rows = [*rows, self.essence]
        if self.h is None and bool(delta.detach().any()):
            raise ValueError("the first evaluation must be at delta = 0")

        def intervene(
            _module: nn.Module, _args: tuple[Tensor, ...], output: Tensor | tuple[Tensor, ...]
        ) -> Tensor | tuple[Tensor, ...]:
            states = _hidden(output)
            if self.h is None:  # contexts[0] is the bare prompt
                self.h = states[0, all_rows[0].lookup].detach().clone().to(self.dtype)
            here = torch.zeros(*states.shape[:2], 1, dtype=self.dtype, device=states.device)
            for i, row in enumerate(all_rows):
                here[i, row.lookup] = 1
            changed = states + (here * delta).to(states.dtype)
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        handle = self.block.register_forward_hook(intervene)
        try:
            logits = _forward(self.model, all_rows).to(self.dtype)
        finally:
            handle.remove()
        assert self.h is not None

        per_context = []
        for i, row in enumerate(rows):
            m, end = len(row.target), len(row.ids)
            log_probs = functional.log_softmax(logits[i, end - m : end], dim=-1)
            target = torch.tensor(row.target, device=logits.device)
            picked = log_probs[torch.arange(m, device=logits.device), target]
            per_context.append(-picked.mean())
            self.least = min(self.least, picked.min().exp().item()) if i else picked.min().exp().item()
        nll = torch.stack(per_context).mean()

        now = functional.log_softmax(logits[-1, all_rows[-1].lookup], dim=-1).unsqueeze(0)
        if self.initial is None:
            self.initial = now.detach().clone()
        # kl_div(a, b) is the sum of b (log b - log a), so as in the reference this is KL(now || initial):
        # the expectation is under the present distribution. One row, so "batchmean" divides by 1.
        divergence = functional.kl_div(self.initial, now, log_target=True, reduction="batchmean")
        kl = self.settings.kl_factor * divergence

        decay = self.settings.weight_decay * delta.norm() / self.h.norm() ** 2
        return Losses(nll + kl + decay, nll, kl, decay)


@dataclass
class Value:
    """What the optimisation of one fact came to; ``trace`` holds the terms at every evaluation."""

    h: Tensor
    delta: Tensor
    trace: list[dict[str, float]] = field(default_factory=list)

    @property
    def z(self) -> Tensor:
        """The wanted output of block L at the subject's last token."""
        return self.h + self.delta


def optimise_value(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    request: SerialRequest,
    settings: SerialSettings,
    contexts: Sequence[str],
) -> Value:
    """Optimise delta for one fact, as ``value_vector`` does, and return all of the outcome."""
    objective = ValueObjective(model, tokenizer, request, settings, contexts)
    delta = objective.zero()
    adam = torch.optim.Adam([delta], lr=settings.lr)
    trace: list[dict[str, float]] = []
    low = 0  # steps in a row that met a stop rule
    with _frozen(model):
        for step in range(settings.steps):
            losses = objective(delta, step)
            trace.append({name: term.item() for name, term in losses._asdict().items()})
            trace[-1]["least"] = objective.least
            low = low + 1 if trace[-1]["total"] < settings.loss_floor or objective.least > settings.enough else 0
            if low == settings.turns or step == settings.steps - 1:
                break
            adam.zero_grad()
            losses.total.backward()
            adam.step()
            with torch.no_grad():  # back onto the ball
                limit, norm = settings.clamp * objective.h.norm(), delta.norm()
                if norm > limit:
                    delta.mul_(limit / norm)
    return Value(objective.h, delta.detach(), trace)


def value_vector(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    request: SerialRequest,
    settings: SerialSettings,
    contexts: Sequence[str],
) -> Tensor:
    """z = h + delta, shape [d]."""
    return optimise_value(model, tokenizer, request, settings, contexts).z


# ---------------------------------------------------------------------------------------- keys and covariance


def _check_contexts(contexts: Sequence[str]) -> None:
    if not contexts or contexts[0] != "{}":
        raise ValueError("the first context must be the bare prompt, '{}'")


def keys(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    requests: Sequence[SerialRequest],
    layer: int,
    contexts: Sequence[str],
) -> Tensor:
    """The keys of several facts, shape [number of facts, d_ff]; see ``key``."""
    _check_contexts(contexts)
    rows = [request_row(tokenizer, context, request, with_target=False) for request in requests for context in contexts]
    inputs = _read(model, _down_projection(model, layer), rows, inputs=True)
    each = inputs.reshape(len(requests), len(contexts), -1)
    bare = each[:, 0]
    return bare if len(contexts) == 1 else (bare + each[:, 1:].mean(1)) / 2


def key(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    request: SerialRequest,
    layer: int,
    contexts: Sequence[str],
) -> Tensor:
    """Input of the layer's down projection at the subject's last token, shape [d_ff].

    Half of it is the bare prompt's (``contexts[0]``), half the mean over the other contexts, if any.
    """
    return keys(model, tokenizer, [request], layer, contexts)[0]


@torch.no_grad()
def covariance(
    model: PreTrainedModel, token_rows: Tensor | Sequence[Tensor], layers: Sequence[int]
) -> dict[int, Tensor]:
    """E[k k^T] (not centred) per layer over every token, summed in float64; shape [d_ff, d_ff]."""
    sums: dict[int, Tensor] = {}
    count = 0

    def collect(layer: int, _module: nn.Module, args: tuple[Tensor, ...], _output: Tensor) -> None:
        k = args[0].reshape(-1, args[0].shape[-1]).double()
        sums[layer] = sums.get(layer, 0) + k.T @ k

    handles = [
        _down_projection(model, layer).register_forward_hook(functools.partial(collect, layer))
        for layer in sorted(set(layers))
    ]
    try:
        for row in token_rows:
            model(input_ids=row.reshape(1, -1).to(model.device), use_cache=False)
            count += row.numel()
    finally:
        for handle in handles:
            handle.remove()
    return {layer: total / count for layer, total in sums.items()}


# ------------------------------------------------------------------------------------------------- the update


def outputs(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, requests: Sequence[SerialRequest], layer: int
) -> Tensor:
    """Output of the block at the subject's last token in each bare prompt, shape [number of facts, d]."""
    rows = [request_row(tokenizer, "{}", request, with_target=False) for request in requests]
    return _read(model, _block(model, layer), rows, inputs=False)


def solve(residual: Tensor, key_columns: Tensor, moment: Tensor, weight: float) -> Tensor:
    """R K^T (weight * C + K K^T)^-1 in float64; R is [d, n], K is [d_ff, n], C is [d_ff, d_ff]."""
    r, k, c = residual.double(), key_columns.double(), moment.double()
    return r @ torch.linalg.solve(weight * c + k @ k.T, k).T  # the matrix to invert is symmetric


def update(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    requests: Sequence[SerialRequest],
    settings: SerialSettings,
    contexts: Sequence[str],
    covariance: dict[int, Tensor],
    values: Tensor | None = None,
) -> dict[int, Tensor]:
    """Layer -> Delta in float64, shape [d, d_ff], whatever orientation the module stores.

    The model is the same afterwards, bit by bit. ``values`` [number of facts, d], if given, are taken for the
    z vectors instead of optimising them here.
    """
    if not requests:
        raise ValueError("no requests")
    last = settings.layers[-1]
    if values is None:
        values = torch.stack([value_vector(model, tokenizer, r, settings, contexts) for r in requests])
    originals = {layer: _down_projection(model, layer).weight.detach().clone() for layer in settings.layers}
    deltas: dict[int, Tensor] = {}
    try:
        for i, layer in enumerate(settings.layers):  # each layer sees the new weights of those below it
            k = keys(model, tokenizer, requests, layer, contexts)
            gap = values.double() - outputs(model, tokenizer, requests, last).double()
            share = gap / (len(settings.layers) - i)
            moment = covariance[layer].to(k.device)
            deltas[layer] = solve(share.T, k.T, moment, settings.mom2_weight)
            module = _down_projection(model, layer)
            with torch.no_grad():
                module.weight.add_(oriented(module, deltas[layer]).to(module.weight.dtype))
    finally:
        with torch.no_grad():
            for layer, weight in originals.items():
                _down_projection(model, layer).weight.copy_(weight)
    return deltas


@contextlib.contextmanager
def applied(model: PreTrainedModel, deltas: dict[int, Tensor]) -> Iterator[PreTrainedModel]:
    """The model with the deltas added to its weights, which are put back at the end."""
    originals = {layer: _down_projection(model, layer).weight.detach().clone() for layer in deltas}
    try:
        with torch.no_grad():
            for layer, delta in deltas.items():
                module = _down_projection(model, layer)
                module.weight.add_(oriented(module, delta).to(module.weight))
        yield model
    finally:
        with torch.no_grad():
            for layer, weight in originals.items():
                _down_projection(model, layer).weight.copy_(weight)
