"""The memory formula: right at another size than it was counted at, and kept to."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from tiny_models import tiny_llama, tiny_tokenizer

from editor import EditRequest, LanguageModel, Memit, MemitSettings, Preparation, ValueCache
from editor import memory as module
from editor.architectures import architecture_of
from editor.memory import free_memory, kept_bytes
from editor.requests import rewrite_rows
from editor.values import ValueOptimiser, by_subject

CONTEXTS = ("{}", "The old river. {}")
SETTINGS = MemitSettings(layers=(0, 1), steps=3, contexts=1)
REQUESTS = [EditRequest("The head of state of {} is", f"Country number {n}", f"Person {n}") for n in range(24)]


@pytest.fixture(scope="module")
def tiny() -> LanguageModel:
    model = tiny_llama(dtype=torch.float32).requires_grad_(requires_grad=False)
    return LanguageModel(model, tiny_tokenizer(), architecture_of(model), "tiny")


def suffix_tokens(tiny: LanguageModel, requests: list[EditRequest]) -> int:
    rows = [row for request in requests for row in rewrite_rows(tiny.tokenizer, CONTEXTS, request)]
    return sum(len(row.ids) - row.subject for row in rows)


def test_what_is_kept_grows_with_the_tokens_as_the_formula_says(tiny: LanguageModel) -> None:
    optimiser = ValueOptimiser(tiny, SETTINGS, CONTEXTS)
    counts = {}
    for size in (4, 24):
        step = optimiser.memory(REQUESTS[:size])
        counts[size] = step.per_token * suffix_tokens(tiny, REQUESTS[:size])
    predicted = optimiser.memory(REQUESTS[:4]).per_token * suffix_tokens(tiny, REQUESTS)
    assert counts[24] == pytest.approx(predicted, rel=0.15)
    assert counts[24] > 4 * counts[4]


def test_weights_and_views_of_one_storage_do_not_count() -> None:
    weight, state = torch.randn(30, 30), torch.randn(10, 30, requires_grad=True)
    product = kept_bytes(lambda: state @ weight, {weight.untyped_storage().data_ptr()})
    assert product == 0
    assert kept_bytes(lambda: state @ weight, set()) == weight.nbytes
    assert kept_bytes(lambda: state[:5] * state[5:], set()) == state.nbytes


@pytest.mark.parametrize(("budget", "batches"), [(1, len(REQUESTS)), (1 << 40, 1)])
def test_a_batch_keeps_to_the_budget_and_holds_one_subject_at_least(
    tiny: LanguageModel, tmp_path: Path, budget: int, batches: int
) -> None:
    moments = {layer: torch.eye(48, dtype=torch.float64) for layer in SETTINGS.layers}
    memit = Memit(tiny, SETTINGS, Preparation(CONTEXTS, moments), ValueCache(tmp_path), memory=budget)
    memit.values(REQUESTS)
    assert len(list(tmp_path.glob("*.safetensors"))) == batches


def test_a_device_that_has_less_than_it_said_gets_half(tiny: LanguageModel, tmp_path: Path) -> None:
    moments = {layer: torch.eye(48, dtype=torch.float64) for layer in SETTINGS.layers}
    preparation = Preparation(CONTEXTS, moments)
    expected = Memit(tiny, SETTINGS, preparation, ValueCache(tmp_path / "roomy")).values(REQUESTS)
    optimise = ValueOptimiser.__call__
    sizes: list[int] = []

    def scarce(self: ValueOptimiser, requests: list[EditRequest], *arguments: object) -> torch.Tensor:
        sizes.append(len(by_subject(requests)))
        if len(requests) > 6:
            raise torch.OutOfMemoryError("staged")
        return optimise(self, requests, *arguments)  # type: ignore[arg-type]

    with patch.object(ValueOptimiser, "__call__", scarce):
        vectors = Memit(tiny, SETTINGS, preparation, ValueCache(tmp_path / "scarce")).values(REQUESTS)
    assert sizes[0] == len(REQUESTS)
    assert max(size for size in sizes if size <= 6) == 6
    assert torch.equal(vectors, expected)


def test_a_control_group_bounds_what_is_free(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("2000\n")
    with patch.object(module, "CGROUP", tmp_path):
        assert free_memory(torch.device("cpu")) == 3000
    (tmp_path / "memory.max").write_text("max\n")
    with patch.object(module, "CGROUP", tmp_path):
        assert free_memory(torch.device("cpu")) > 1 << 20
