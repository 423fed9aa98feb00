"""Packed texts: each attends to itself only, and comes out the same in whatever company."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import tiny_llama, tiny_tokenizer

from editor import EditRequest, LanguageModel, Memit, MemitSettings, Preparation, ValueCache
from editor.architectures import architecture_of
from editor.packing import TOKENS_MULTIPLE, Packing, Segment, attend
from editor.values import ValueOptimiser

CPU = torch.device("cpu")
HEADS, KV_HEADS, WIDTH = 4, 2, 8
CONTEXTS = ("{}", "The old river. {}")


def segments_of(lengths: list[tuple[int, int]]) -> tuple[list[Segment], int]:
    """Segments of given (prefix, own) lengths with prefixes side by side in a store of so many tokens."""
    stored, segments = 0, []
    for before, own in lengths:
        segments.append(Segment(own, tuple(range(stored, stored + before))))
        stored += before
    return segments, stored


def plain_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, before: int, window: int | None
) -> torch.Tensor:
    """One text: queries ``[heads, S, n]`` behind ``before`` keys of ``[kv_heads, P + S, n]``."""
    repeats = query.shape[0] // key.shape[0]
    scores = query @ key.repeat_interleave(repeats, 0).mT
    at_query = torch.arange(query.shape[1])[:, None] + before
    at_key = torch.arange(key.shape[1])[None, :]
    sees = at_key <= at_query
    if window is not None:
        sees &= at_query - at_key < window
    return scores.masked_fill(~sees, -torch.inf).softmax(-1) @ value.repeat_interleave(repeats, 0)


@given(
    lengths=st.lists(st.tuples(st.integers(0, 20), st.integers(1, 40)), min_size=1, max_size=8),
    window=st.none() | st.integers(1, 30),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_each_text_attends_to_itself_only(lengths: list[tuple[int, int]], window: int | None, seed: int) -> None:
    segments, stored = segments_of(lengths)
    packing = Packing(segments, CPU)
    assert packing.size % TOKENS_MULTIPLE == 0
    assert packing.tokens == sum(own for _, own in lengths)
    generator = torch.Generator().manual_seed(seed)

    def random(heads: int, tokens: int) -> torch.Tensor:
        return torch.randn(heads, tokens, WIDTH, generator=generator, dtype=torch.float64)

    query, key, value = random(HEADS, packing.size), random(KV_HEADS, packing.size), random(KV_HEADS, packing.size)
    old_key, old_value = random(KV_HEADS, max(stored, 1)), random(KV_HEADS, max(stored, 1))
    prefix = [(old_key[:, g.prefix].transpose(0, 1), old_value[:, g.prefix].transpose(0, 1)) for g in packing.groups]
    out = attend(packing, prefix, query[None], key[None], value[None], scaling=1.0, window=window)[0].transpose(0, 1)
    for segment, start, (before, own) in zip(segments, packing.starts, lengths, strict=True):
        part, places = slice(start, start + own), list(segment.prefix)
        expected = plain_attention(
            query[:, part],
            torch.cat([old_key[:, places], key[:, part]], 1),
            torch.cat([old_value[:, places], value[:, part]], 1),
            before,
            window,
        )
        assert torch.allclose(out[:, part], expected, atol=1e-10)


def test_gradients_stay_within_a_text() -> None:
    packing = Packing([Segment(3), Segment(9), Segment(30)], CPU)
    states = [torch.randn(1, heads, packing.size, WIDTH, dtype=torch.float64) for heads in (HEADS, KV_HEADS, KV_HEADS)]
    for state in states:
        state.requires_grad_()
    out = attend(packing, None, *states, scaling=0.3)
    gradients = torch.autograd.grad(out[0, packing.starts[1] : packing.starts[2]].sum(), states)
    for gradient in gradients:
        own = torch.zeros(packing.size, dtype=torch.bool)
        own[packing.starts[1] : packing.starts[2]] = True
        assert not gradient[0][:, ~own].any()
        assert torch.isfinite(gradient).all()


FACTS = [
    ("The head of state of {} is", "Albania", "Bajram Begaj"),
    ("{} plays for", "Lionel Messi", "Inter Miami"),
    ("{}, the capital of which is", "Kazakhstan", "Astana"),
    ("The chairperson of the long named body {} since then is", "UN", "A. B. Carter"),
    ("{} is", "Q", "x"),
    ("The team that {} plays for is", "Damian Lillard", "the Milwaukee Bucks"),
]


@pytest.mark.parametrize("precision", ["model", "bfloat16"])
def test_a_value_vector_is_the_same_bits_in_any_company(precision: str, tmp_path: Path) -> None:
    model = tiny_llama(dtype=torch.float32).requires_grad_(requires_grad=False)
    tiny = LanguageModel(model, tiny_tokenizer(), architecture_of(model), "tiny")
    chosen = MemitSettings(layers=(0, 1), steps=8, contexts=1, precision=precision)
    requests = [EditRequest(*fact) for fact in FACTS]
    together = ValueOptimiser(tiny, chosen, CONTEXTS)(requests)
    alone = torch.cat([ValueOptimiser(tiny, chosen, CONTEXTS)([request]) for request in requests])
    assert torch.equal(together, alone)
    moments = {layer: torch.eye(48, dtype=torch.float64) for layer in (0, 1)}
    small, large = (
        Memit(tiny, chosen, Preparation(CONTEXTS, moments), ValueCache(tmp_path / str(memory)), memory).values(requests)
        for memory in (1, 1 << 30)
    )
    assert torch.equal(small, large), "the memory budget must not show in the result"
    assert torch.equal(small, together.float())
