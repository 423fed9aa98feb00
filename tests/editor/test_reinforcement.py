"""Reinforcement: facts that the edited model still does not give are pushed further, and no other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from knowing_model import CITIES, facts

from editor import (
    EditRequest,
    LanguageModel,
    Memit,
    MemitSettings,
    Preparation,
    RequestInvalid,
    ValueCache,
    WeightUpdate,
    fill,
    scores,
)
from editor.covariance import covariance

LAYERS = (2, 3, 4)


def counterfacts(count: int) -> list[EditRequest]:
    """Facts with another fact's answer."""
    known = [fact for fact in facts() if fact.relation == "city"][:count]
    return [
        EditRequest(fact.prompt, fact.subject, next(city for city in CITIES[n % 3 :] if city != fact.answer) + ".")
        for n, fact in enumerate(known)
    ]


def editor(trained: LanguageModel, directory: Path, **overrides: object) -> Memit:
    shared = {
        "layers": LAYERS,
        "steps": 25,
        "clamp": 2.0,
        "contexts": 0,
        "covariance_weight": 300.0,
        "passes": 2,
        "shrinkage": 0.05,
    }
    rows = trained.tokenizer([f"{fill(f.prompt, f.subject)} {f.answer}." for f in facts()])["input_ids"]
    moments = covariance(trained, rows * 8, LAYERS)
    return Memit(
        trained, MemitSettings.model_validate(shared | overrides), Preparation(("{}",), moments), ValueCache(directory)
    )


def given(model: LanguageModel, update: WeightUpdate, requests: list[EditRequest]) -> list[bool]:
    """Which facts the edited model gives."""
    parameters = dict(model.model.named_parameters())
    before = {name: parameters[name].clone() for name in update.tensors}
    with torch.no_grad():
        for name, tensor in update.tensors.items():
            parameters[name].add_(tensor)
    found = [score.greedy for score in scores(model, [(fill(f.prompt, f.subject), f.target) for f in requests])]
    with torch.no_grad():
        for name, tensor in before.items():
            parameters[name].copy_(tensor)
    return found


def test_what_did_not_take_is_pushed_until_it_does(trained: LanguageModel, tmp_path: Path) -> None:
    requests = counterfacts(12)
    plain = given(trained, editor(trained, tmp_path).update([requests]), requests)
    pushed = given(trained, editor(trained, tmp_path, reinforcements=6).update([requests]), requests)
    assert sum(plain) < len(requests), "a test without a fact that fails proves nothing"
    assert sum(pushed) > sum(plain)
    lost = [before and not now for now, before in zip(pushed, plain, strict=True)]
    assert sum(lost) <= 1, "what took must not be lost"


def test_where_everything_took_nothing_is_pushed(trained: LanguageModel, tmp_path: Path) -> None:
    everything = counterfacts(12)
    taken = given(trained, editor(trained, tmp_path, covariance_weight=1.0).update([everything]), everything)
    requests = [request for request, taken in zip(everything, taken, strict=True) if taken][:1]
    plain = editor(trained, tmp_path, covariance_weight=1.0).update([requests])
    assert given(trained, plain, requests) == [True]
    pushed = editor(trained, tmp_path, covariance_weight=1.0, reinforcements=3).update([requests])
    for name, tensor in plain.tensors.items():
        assert torch.equal(tensor, pushed.tensors[name])


def test_the_weights_do_not_depend_on_the_order(trained: LanguageModel, tmp_path: Path) -> None:
    requests = counterfacts(6)
    one = editor(trained, tmp_path / "one", reinforcements=2).update([requests])
    other = editor(trained, tmp_path / "other", reinforcements=2).update([requests[::-1]])
    for name, tensor in one.tensors.items():
        assert torch.equal(tensor, other.tensors[name])


@pytest.mark.parametrize("pushes", [0, 3])
def test_progress_comes_to_its_end(trained: LanguageModel, tmp_path: Path, pushes: int) -> None:
    seen: list[tuple[int, int]] = []

    def progress(stage: str, done: int, total: int) -> None:
        if stage == "insertion":
            seen.append((done, total))

    memit = editor(trained, tmp_path, steps=3, covariance_weight=1e-3, reinforcements=pushes)
    memit.update([counterfacts(1)], progress=progress)
    assert seen[-1] == (2 + pushes, 2 + pushes)
    assert seen == sorted(seen)


def test_a_stronger_request_takes_where_a_plain_one_does_not(trained: LanguageModel, tmp_path: Path) -> None:
    requests = counterfacts(12)
    plain = given(trained, editor(trained, tmp_path).update([requests]), requests)
    missed = [request for request, taken in zip(requests, plain, strict=True) if not taken]
    assert missed, "a test without a fact that fails proves nothing"
    stronger = [replace(r, strength=1.0 if r not in missed else 3.0) for r in requests]
    now = given(trained, editor(trained, tmp_path).update([stronger]), stronger)
    assert sum(now) > sum(plain)


@pytest.mark.parametrize("strength", [0.0, -1.0, float("nan"), float("inf")])
def test_a_strength_is_a_positive_number(strength: float) -> None:
    with pytest.raises(RequestInvalid, match="strength"):
        EditRequest("{} is in", "Rome", "Italy", strength=strength)
