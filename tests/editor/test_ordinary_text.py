"""Sampled text follows the model's own distribution."""

from __future__ import annotations

import torch

from editor import LanguageModel
from editor.contexts import context_templates
from editor.ordinary_text import _InverseTransform, sample
from editor.settings import MemitSettings


def test_each_token_is_drawn_as_often_as_the_model_says() -> None:
    torch.manual_seed(0)
    probabilities = torch.tensor([0.5, 0.0, 0.3, 0.05, 0.15])
    rows = 20_000
    scores = _InverseTransform()(torch.zeros(rows, 1), probabilities.log().expand(rows, -1))
    assert bool((scores.isfinite().sum(1) == 1).all())
    drawn = scores.argmax(1).bincount(minlength=5) / rows
    assert torch.allclose(drawn, probabilities, atol=0.02)
    assert drawn[1] == 0


def test_sampling_is_reproducible_and_leaves_the_global_generator_alone(tiny: LanguageModel) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    openers = ["The river", "In"]
    first = sample(tiny, openers, 12, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert first == sample(tiny, openers, 12, seed=1)
    assert first != sample(tiny, openers, 12, seed=2)


def test_only_the_likeliest_tokens_are_drawn_where_that_is_asked(tiny: LanguageModel) -> None:
    greedy = sample(tiny, ["The river"], 6, seed=1, likeliest=1)
    assert greedy == sample(tiny, ["The river"], 6, seed=2, likeliest=1)


def test_contexts_hold_one_place_and_the_first_is_bare(tiny: LanguageModel) -> None:
    settings = MemitSettings(layers=(0, 1), contexts=3, context_tokens=4)
    templates = context_templates(tiny, settings)
    assert templates[0] == "{}"
    assert len(templates) == 4
    assert all(template.count("{}") == 1 and template.endswith("{}") for template in templates)
