"""Reading and fluency against their plain definitions."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_models import tiny_llama, tiny_tokenizer

from editor import LanguageModel, continuations, ngram_entropy, perplexity, readings, repetition
from editor.architectures import architecture_of


def texts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(2)
    lengths = (7, 1, 23, 2, 40, 7, 90)
    return [torch.randint(1, 500, (length,), generator=generator).tolist() for length in lengths]


@pytest.fixture
def other() -> LanguageModel:
    model = tiny_llama(seed=9, dtype=torch.float64).eval().requires_grad_(requires_grad=False)
    return LanguageModel(model, tiny_tokenizer(), architecture_of(model), "other")


def plain(model: LanguageModel, text: list[int]) -> torch.Tensor:
    """Log-probabilities of every next token, ``[tokens - 1, vocabulary]``."""
    logits = model.model(input_ids=torch.tensor([text]), use_cache=False).logits
    return logits[0, :-1].log_softmax(-1)


@torch.no_grad()
def test_each_text_is_read_as_a_pass_of_its_own_reads_it(tiny: LanguageModel, other: LanguageModel) -> None:
    read = readings(tiny, texts(), other)
    usable = [text for text in texts() if len(text) > 1]
    assert [each.tokens for each in read] == [len(text) - 1 for text in usable]
    for each, text in zip(read, usable, strict=True):
        ours, theirs = plain(tiny, text), plain(other, text)
        loss = -ours.gather(1, torch.tensor(text[1:]).unsqueeze(1)).sum()
        divergence = (ours.exp() * (ours - theirs)).sum()
        assert each.loss == pytest.approx(float(loss), rel=1e-5)
        assert each.divergence == pytest.approx(float(divergence), rel=1e-4)


def test_a_model_does_not_diverge_from_itself(tiny: LanguageModel) -> None:
    assert all(abs(each.divergence) < 1e-6 for each in readings(tiny, texts(), tiny))
    assert all(each.divergence == 0 for each in readings(tiny, texts()))


def test_perplexity_is_that_of_all_tokens(tiny: LanguageModel) -> None:
    read = readings(tiny, texts())
    mean = sum(each.loss for each in read) / sum(each.tokens for each in read)
    assert perplexity(tiny, texts()) == pytest.approx(math.exp(mean))
    assert math.isnan(perplexity(tiny, [[3]]))


def test_entropy_and_repetition() -> None:
    assert ngram_entropy([5, 5, 5, 5]) == 0
    # Four bigrams and three trigrams, each once.
    assert ngram_entropy([1, 2, 3, 4, 5]) == pytest.approx(math.log2(4) / 3 + math.log2(3) * 2 / 3)
    assert repetition([1, 2, 3, 4, 5]) == 0
    assert repetition([7] * 5) == pytest.approx(2 / 3)
    assert (ngram_entropy([1]), repetition([1, 2])) == (0, 0)


def test_what_is_written_is_what_follows_the_prompt_and_always_the_same(tiny: LanguageModel) -> None:
    prompts = ["The capital of", "It is", "Marie Curie was born in Warsaw"]
    written = continuations(tiny, prompts, 6, seed=1)
    assert written == continuations(tiny, prompts, 6, seed=1)
    assert all(0 < len(text) <= 6 for text in written)
    for prompt, text in zip(prompts, written, strict=True):
        ids = tiny.tokenizer(prompt)["input_ids"]
        likeliest = tiny.model(input_ids=torch.tensor([ids])).logits[0, -1].topk(5).indices
        assert text[0] in likeliest.tolist(), "the prompt itself is not part of it"
