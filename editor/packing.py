"""Texts packed without padding: the tokens of many texts stand in one row, and each text attends to itself only.

Everything but attention treats tokens alone, so a packed row wastes nothing there. For attention the texts are laid
out in groups of one padded shape each. A text's shape follows from its own lengths, never from its neighbours', and
the row is filled up to a multiple of :data:`TOKENS_MULTIPLE`. A text's results are then the same bits in whatever
company it is run, wherever a matrix product's rows do not depend on how many there are beside them (measured on CPU
with MKL; tests/editor/test_packing.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Sequence

TOKENS_MULTIPLE = 16
PREFIX_STEP = 16
SHORT = 16
"""Segments up to this length are padded to a multiple of :data:`SHORT_STEP`, longer ones to one of this."""
SHORT_STEP = 4


@dataclass(frozen=True)
class Segment:
    """Consecutive tokens of one text.

    Attributes:
        length: how many tokens.
        prefix: the text's earlier tokens, as indices into a store of keys and values.
    """

    length: int
    prefix: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[int, int]:
        """Padded lengths of prefix and segment in attention."""
        step = SHORT_STEP if self.length <= SHORT else SHORT
        return _up(len(self.prefix), PREFIX_STEP), _up(self.length, step)


def _up(number: int, step: int) -> int:
    return -(-number // step) * step


@dataclass
class _Group:
    """Segments of one padded shape; they fill ``rows * length`` slots from ``start`` on."""

    start: int
    length: int  # S
    prefix: Tensor  # [rows, P] indices into the store; 0 where padded
    prefix_real: Tensor  # [rows, P] bool
    lengths: Tensor  # [rows]
    biases: dict[tuple[torch.dtype, int | None, int], Tensor] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        return len(self.prefix)

    def bias(self, dtype: torch.dtype, window: int | None, repeats: int) -> Tensor:
        """0 where a query sees a key and -inf elsewhere, ``[rows, 1, repeats * S, P + S]``."""
        key = (dtype, window, repeats)
        if key not in self.biases:
            bias = torch.zeros(*self._sees(window).shape, dtype=dtype, device=self.prefix.device)
            bias.masked_fill_(~self._sees(window), -torch.inf)
            self.biases[key] = bias.repeat(1, repeats, 1).unsqueeze(1)
        return self.biases[key]

    def _sees(self, window: int | None) -> Tensor:
        """Which of prefix and segment each query of the segment sees, bool ``[rows, S, P + S]``."""
        at = torch.arange(self.length, device=self.prefix.device)
        before = self.prefix_real.sum(1)
        # Queries of the padding see what a real one would, so that no softmax is over nothing.
        own = (at[None, :, None] >= at[None, None, :]) & (at[None, None, :] < self.lengths[:, None, None])
        sees = torch.cat([self.prefix_real[:, None, :].expand(-1, self.length, -1), own], 2)
        if window is None:
            return sees
        columns = torch.arange(self.prefix.shape[1], device=at.device).expand(self.rows, -1)
        key_at = torch.cat([columns, before[:, None] + at], 1)
        query_at = torch.minimum(at, self.lengths[:, None] - 1) + before[:, None]
        return sees & (query_at[:, :, None] - key_at[:, None, :] < window)


class Packing:
    """Where the tokens of some segments stand.

    Attributes:
        tokens: number of real tokens T; segment after segment in the order given.
        size: T rounded up; the tokens behind the real ones are filler.
        positions: each token's position in its text, ``[1, size]``.
        starts: each segment's first token.
    """

    def __init__(self, segments: Sequence[Segment], device: torch.device) -> None:
        lengths = [segment.length for segment in segments]
        self.tokens = sum(lengths)
        self.size = _up(max(self.tokens, 1), TOKENS_MULTIPLE)
        self.starts = torch.tensor([0, *lengths]).cumsum(0)[:-1].tolist()
        filled = [*segments, Segment(self.size - self.tokens)] if self.size > self.tokens else list(segments)
        starts = [*self.starts, self.tokens]
        positions = [len(s.prefix) + k for s in filled for k in range(s.length)]
        self.positions = torch.tensor([positions], device=device)
        self.groups: list[_Group] = []
        token_of_slot: list[int] = []  # -1 where padded
        by_shape: dict[tuple[int, int], list[int]] = {}
        for index, segment in enumerate(filled):
            by_shape.setdefault(segment.shape, []).append(index)
        for (wide, long), members in sorted(by_shape.items()):
            self.groups.append(_group(len(token_of_slot), long, wide, [filled[m] for m in members], device))
            for member in members:
                length = filled[member].length
                token_of_slot += [*range(starts[member], starts[member] + length), *[-1] * (long - length)]
        slots = torch.tensor(token_of_slot)
        real = (slots >= 0).nonzero().squeeze(1)
        slot_of_token = torch.empty(self.size, dtype=torch.long)
        slot_of_token[slots[real]] = real
        self._token_of_slot = slots.clamp(min=0).to(device)
        self._slot_of_token = slot_of_token.to(device)
        self._padded = (slots < 0).nonzero().squeeze(1).to(device)

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest text, prefix included."""
        return int(self.positions.max()) + 1

    def to_slots(self, states: Tensor) -> Tensor:
        """``[heads, size, n]`` at tokens to ``[heads, slots, n]`` in groups."""
        slots: Tensor = _Move.apply(states, self._token_of_slot, self._slot_of_token, self._padded, None)  # type: ignore[no-untyped-call]
        return slots

    def to_tokens(self, states: Tensor) -> Tensor:
        """The inverse of :meth:`to_slots`."""
        tokens: Tensor = _Move.apply(states, self._slot_of_token, self._token_of_slot, None, self._padded)  # type: ignore[no-untyped-call]
        return tokens


def _group(start: int, length: int, wide: int, members: Sequence[Segment], device: torch.device) -> _Group:
    padded = [[*m.prefix, *[0] * (wide - len(m.prefix))] for m in members]
    before = torch.tensor([len(m.prefix) for m in members], device=device)
    return _Group(
        start, length,
        torch.tensor(padded, dtype=torch.long, device=device).view(len(members), wide),
        torch.arange(wide, device=device) < before[:, None],
        torch.tensor([m.length for m in members], device=device),
    )  # fmt: skip


class _Move(torch.autograd.Function):
    """Moves along the second dimension by an index and, backwards, by its inverse: neither way adds anything up."""

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, index: Tensor, inverse: Tensor, padded: Tensor | None, padded_before: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(inverse)
        ctx.padded_before = padded_before
        moved = states.index_select(1, index)
        return moved if padded is None else moved.index_fill_(1, padded, 0.0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        (inverse,) = ctx.saved_tensors
        moved = gradient.index_select(1, inverse)
        if ctx.padded_before is not None:
            moved.index_fill_(1, ctx.padded_before, 0.0)
        return moved, None, None, None, None


def attention_dtype(states: Tensor) -> torch.dtype:
    """The precision in which attention is computed.

    On CPU, attention between short bfloat16 texts takes several times as long as in float32, backwards above all.
    """
    return torch.float32 if states.device.type == "cpu" and states.dtype == torch.bfloat16 else states.dtype


def attend(
    packing: Packing,
    prefix: Sequence[tuple[Tensor, Tensor]] | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scaling: float,
    softcap: float | None = None,
    window: int | None = None,
) -> Tensor:
    """Attention of each packed text to itself: ``[1, size, heads, n]``.

    Args:
        packing: where the tokens stand.
        prefix: keys and values of earlier tokens per group, ``[rows, kv_heads, P, n]`` each, in
            :func:`attention_dtype`.
        query: ``[1, heads, size, n]``.
        key: ``[1, kv_heads, size, n]``.
        value: as the keys.
        scaling: factor of the scores.
        softcap: bound of the scores by a hyperbolic tangent, if any (Gemma 2).
        window: how many tokens back a token sees, if bounded.
    """
    heads, kv_heads, width = query.shape[1], key.shape[1], query.shape[3]
    repeats = heads // kv_heads
    window = None if window is None or window >= packing.longest else window
    computed = attention_dtype(query)
    queries, keys, values = (packing.to_slots(states[0].to(computed)) for states in (query, key, value))
    outputs = []
    for number, group in enumerate(packing.groups):
        rows, length = group.rows, group.length
        part = slice(group.start, group.start + rows * length)
        # The queries that share a key head stand behind one another, so keys need no copies.
        q = queries[:, part].view(kv_heads, repeats, rows, length, width).permute(2, 0, 1, 3, 4)
        q = q.reshape(rows, kv_heads, repeats * length, width)
        k, v = (states[:, part].view(kv_heads, rows, length, width).transpose(0, 1) for states in (keys, values))
        if prefix is not None:
            k, v = torch.cat([prefix[number][0], k], 2), torch.cat([prefix[number][1], v], 2)
        bias = group.bias(q.dtype, window, repeats)
        if softcap is None:
            out = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scaling)
        else:
            scores = softcap * (q @ k.mT * (scaling / softcap)).tanh() + bias
            out = scores.softmax(-1) @ v
        out = out.view(rows, kv_heads, repeats, length, width).permute(1, 2, 0, 3, 4)
        outputs.append(out.reshape(heads, rows * length, width))
    return packing.to_tokens(torch.cat(outputs, 1).to(query.dtype)).transpose(0, 1).unsqueeze(0)
