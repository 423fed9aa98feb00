"""Which precision the upper blocks take, and a copy of them that leaves the model alone."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from tiny_models import tiny_family, tiny_tokenizer

from editor import EditRequest, LanguageModel, MemitSettings, precision
from editor.architectures import architecture_of
from editor.precision import chosen_precision, upper_copy
from editor.values import ValueOptimiser


def language_model(name: str, dtype: torch.dtype) -> LanguageModel:
    model = tiny_family(name, dtype=dtype)
    return LanguageModel(model, tiny_tokenizer(), architecture_of(model), name)


@pytest.mark.parametrize(
    ("dtype", "fast", "wanted", "chosen"),
    [
        (torch.float32, True, "auto", "bfloat16"),
        (torch.float32, False, "auto", "model"),
        (torch.float64, True, "auto", "model"),
        (torch.bfloat16, True, "auto", "model"),
        (torch.float32, True, "model", "model"),
        (torch.float64, False, "bfloat16", "bfloat16"),
    ],
)
def test_bfloat16_is_taken_for_float32_where_it_is_fast(
    dtype: torch.dtype, fast: bool, wanted: precision.Precision, chosen: str
) -> None:
    with patch.object(precision, "fast_bfloat16", lambda _device: fast):
        assert chosen_precision(language_model("llama", dtype), wanted) == chosen


@pytest.mark.parametrize("name", ["llama", "llama-biases-untied", "gpt2", "gpt-neox"])
def test_the_copy_shares_what_lies_below_and_leaves_the_model_alone(name: str) -> None:
    base = language_model(name, torch.float32)
    before = {key: value.clone() for key, value in base.model.state_dict().items()}
    upper = upper_copy(base, 2, "bfloat16")
    for at in range(base.depth):
        for ours, own in zip(
            upper.architecture.blocks_of(upper.model)[at].parameters(),
            base.architecture.blocks_of(base.model)[at].parameters(),
            strict=True,
        ):
            assert (ours is own) == (at < 2)
            assert ours.dtype == (torch.float32 if at < 2 else torch.bfloat16)
    assert upper.model.get_output_embeddings().weight.dtype == torch.bfloat16
    for key, value in base.model.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, before[key])


def test_bfloat16_finds_nearly_the_same_vectors() -> None:
    base = language_model("llama", torch.float32)
    requests = [EditRequest("The head of state of {} is", "Albania", "Bajram Begaj"), EditRequest("{} is", "Q", "x")]
    chosen = MemitSettings(layers=(0, 1), steps=4, contexts=0, clamp=0.5, learning_rate=0.05)
    full, half = (
        ValueOptimiser(base, chosen.model_copy(update={"precision": wanted}), ["{}"])(requests)
        for wanted in ("model", "bfloat16")
    )
    assert half.dtype == torch.float32
    assert 0 < float((full - half).norm() / full.norm()) < 0.05
