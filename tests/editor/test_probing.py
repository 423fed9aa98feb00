"""Scores and greedy answers against one plain pass each."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from knowing_model import facts

from editor import Inquiry, LanguageModel, Reply, fill, greedy_answers, is_answer, natural_stop, replies, scores
from editor.answers import CONTINUES_LABEL

INQUIRIES = [
    Inquiry("The head of state of Albania is", ("Bajram Begaj", "Ilir Meta", "Ilir")),
    Inquiry("The head of state of Albania is not", ("Ilir Meta",)),
    Inquiry("Paris", ("is the capital of France", "x")),
    Inquiry("The chairperson of the long named body that the UN has had since then is", ("A. B. Carter", "Ilir Meta")),
    Inquiry("Ada was born in"),
]


def plain_text(model: LanguageModel, prompt: str, new_tokens: int) -> tuple[list[int], list[float]]:
    """Greedy tokens and their log-probabilities, each by a whole pass."""
    ids = model.tokenizer(prompt)["input_ids"]
    written: list[int] = []
    logarithms = []
    for _ in range(new_tokens):
        logits = model.model(input_ids=torch.tensor([[*ids, *written]]), use_cache=False).logits[0, -1]
        token = int(logits.argmax())
        if token == model.tokenizer.eos_token_id:
            break
        written.append(token)
        logarithms.append(float(logits.log_softmax(0)[token]))
    return written, logarithms


def plain_score(model: LanguageModel, prompt: str, answer: str) -> tuple[float, bool]:
    """Log-probability, and whether every token is the most likely one and what follows does not go on."""
    before, ids = (model.tokenizer(text)["input_ids"] for text in (prompt, f"{prompt} {answer}"))
    logits = model.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    at = torch.arange(len(before), len(ids))
    wanted = torch.tensor(ids)[at]
    exact = bool((logits[at - 1].argmax(1) == wanted).all())
    following = model.tokenizer.decode([int(logits[-1].argmax())])
    total = float(logits[at - 1].log_softmax(1).gather(1, wanted[:, None]).sum())
    return total, exact and CONTINUES_LABEL.match(following) is None


@torch.no_grad()
def test_candidates_that_share_a_prompt_are_scored_as_by_a_pass_each(tiny: LanguageModel) -> None:
    for inquiry, reply in zip(INQUIRIES, replies(tiny, INQUIRIES), strict=True):
        assert len(reply.scores) == len(inquiry.candidates)
        for score, candidate in zip(reply.scores, inquiry.candidates, strict=True):
            total, greedy = plain_score(tiny, inquiry.prompt, candidate)
            assert score.log_probability == pytest.approx(total, rel=1e-5)
            assert score.greedy == greedy
            assert score.mean_probability == pytest.approx(math.exp(total / score.tokens), rel=1e-4)
    pairs = [(inquiry.prompt, candidate) for inquiry in INQUIRIES for candidate in inquiry.candidates]
    alone = [scores(tiny, [pair])[0] for pair in pairs]
    assert [score.log_probability for score in scores(tiny, pairs)] == pytest.approx(
        [score.log_probability for score in alone], rel=1e-5
    )


@torch.no_grad()
def test_greedy_answers_are_what_whole_passes_write(tiny: LanguageModel) -> None:
    prompts = [inquiry.prompt for inquiry in INQUIRIES]
    for prompt, text in zip(prompts, greedy_answers(tiny, prompts, new_tokens=9), strict=True):
        tokens, _ = plain_text(tiny, prompt, 9)
        assert text == tiny.tokenizer.decode(tokens, skip_special_tokens=True).strip().split("\n", 1)[0]


@torch.no_grad()
def test_a_reply_is_the_first_answer_with_its_mean_probability(tiny: LanguageModel) -> None:
    for inquiry, reply in zip(INQUIRIES, replies(tiny, INQUIRIES, new_tokens=9), strict=True):
        tokens, logarithms = plain_text(tiny, inquiry.prompt, 9)
        first = natural_stop(tiny.tokenizer.decode(tokens))
        assert natural_stop(reply.text) == first
        lengths = [n for n in range(1, len(tokens) + 1) if natural_stop(tiny.tokenizer.decode(tokens[:n])) == first]
        expected = math.exp(sum(logarithms[: lengths[0]]) / lengths[0]) if first else 0.0
        assert reply.mean_probability == pytest.approx(expected, rel=1e-4)


def told(trained: LanguageModel, *candidates: str, names: tuple[str, ...] = ()) -> tuple[Reply, str]:
    fact = facts()[0]
    prompt = fill(fact.prompt, fact.subject)
    return replies(trained, [Inquiry(prompt, candidates, names)])[0], fact.answer


def test_a_candidate_that_is_the_greedy_answer_is_the_text(trained: LanguageModel) -> None:
    _, answer = told(trained)
    reply, _ = told(trained, "Berlin and more", answer)
    assert [score.greedy for score in reply.scores] == [False, True]
    assert reply.text == answer
    assert reply.mean_probability == reply.scores[1].mean_probability > 0.5


def test_a_text_ends_with_its_first_answer_unless_it_may_become_a_name(trained: LanguageModel) -> None:
    """The facts were learnt with a full stop behind them."""
    written, answer = told(trained)
    assert written.text == f"{answer}."
    longer, _ = told(trained, names=(f"{answer}. More",))
    assert longer.text.startswith(f"{answer}.")
    assert len(longer.text) > len(written.text) or longer.text == f"{answer}."  # the end of the text came first
    assert is_answer(longer.text, answer)
    other, _ = told(trained, names=("More. And more",))
    assert other == written


def test_nothing_is_asked_of_nothing(tiny: LanguageModel) -> None:
    assert replies(tiny, []) == []
    assert scores(tiny, []) == []
    assert greedy_answers(tiny, []) == []


@given(label=st.sampled_from(["Paris", "St. Louis", "A"]), rest=st.text(max_size=6))
def test_an_answer_is_a_label_that_does_not_go_on(label: str, rest: str) -> None:
    assert is_answer(f" {label}{rest}", label) == (CONTINUES_LABEL.match(rest) is None)
