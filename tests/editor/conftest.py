"""Tiny models of each family as the editor sees them."""

from __future__ import annotations

import pytest
import torch
from knowing_model import knowing_model
from tiny_models import tiny_gpt2, tiny_llama, tiny_tokenizer

from editor import LanguageModel
from editor.architectures import architecture_of

BUILDERS = {"llama": tiny_llama, "gpt2": tiny_gpt2}


@pytest.fixture(params=sorted(BUILDERS))
def tiny(request: pytest.FixtureRequest) -> LanguageModel:
    """A tiny random model, in double precision so that differences are errors and not rounding."""
    model = BUILDERS[request.param](seed=3, dtype=torch.float64)
    model.eval().requires_grad_(requires_grad=False)
    return LanguageModel(model, tiny_tokenizer(), architecture_of(model), f"tiny-{request.param}")


@pytest.fixture(scope="session")
def trained() -> LanguageModel:
    """A tiny Llama that knows its facts."""
    return knowing_model()
