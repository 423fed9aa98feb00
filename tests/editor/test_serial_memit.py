"""Sanity of the oracle itself, on tiny models with random weights."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest
import torch
from serial_memit import (
    SerialRequest,
    SerialSettings,
    ValueObjective,
    applied,
    covariance,
    encode,
    fill,
    key,
    keys,
    optimise_value,
    oriented,
    outputs,
    solve,
    subject_last_token,
    update,
    value_vector,
)
from tiny_models import INNER, VOCABULARY, WIDTH, tiny_gpt2, tiny_llama, tiny_tokenizer
from torch import nn
from torch.nn import functional
from transformers.models.llama.modeling_llama import LlamaRMSNorm

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PreTrainedModel

BUILDERS = [tiny_llama, tiny_gpt2]
CONTEXTS = ["{}", "Therefore the people of the city. {}", "I went to see the river. {}"]
SETTINGS = SerialSettings(layers=(1, 2), steps=12)
REQUESTS = [
    SerialRequest("The mayor of {} is", "São Paulo", "Ada Lovelace"),
    SerialRequest("{} is the capital of", "Tokyo", "Germany"),
    SerialRequest("She was born in {}, a city in", "Zürich", "Brazil"),
]

both = pytest.mark.parametrize("build", BUILDERS, ids=["llama", "gpt2"])
precisions = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def some_rows(n: int = 6, t: int = 24) -> torch.Tensor:
    return torch.randint(1, len(tiny_tokenizer()), (n, t), generator=torch.Generator().manual_seed(7))


def down(model: PreTrainedModel, layer: int) -> nn.Module:
    if hasattr(model, "transformer"):
        return model.transformer.h[layer].mlp.c_proj
    return model.model.layers[layer].mlp.down_proj


# --- text and tokens


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("trim", [False, True])
@pytest.mark.parametrize("request_", REQUESTS, ids=lambda r: r.subject)
def test_lookup_and_target_tokens(request_: SerialRequest, bos: bool, trim: bool):
    tokenizer = tiny_tokenizer(bos=bos, trim_offsets=trim)
    for context in CONTEXTS:
        before, after = fill(context, request_.prompt)
        row = encode(tokenizer, before, request_.subject, after, request_.target)
        n = len(row.target)
        assert tokenizer.decode(row.ids[: row.lookup + 1]).endswith(before + request_.subject)
        assert tokenizer.decode(row.target) == " " + request_.target
        assert row.ids[len(row.ids) - n + 1 :] == row.target[:-1]
        without = encode(tokenizer, before, request_.subject, after)
        assert row.ids[: len(row.ids) - n + 1] == without.ids
        assert subject_last_token(tokenizer, before, request_.subject, after) == row.lookup


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("trim", [False, True])
def test_a_last_character_of_several_tokens_is_looked_up_at_its_last_token(bos: bool, trim: bool):
    tokenizer = tiny_tokenizer(bos=bos, trim_offsets=trim)
    index = subject_last_token(tokenizer, "The mayor of ", "東京", " is")
    ids = tokenizer("The mayor of 東京 is")["input_ids"]
    assert index == len(ids) - 2
    assert tokenizer.decode(ids[index]) != "京"  # it alone is not the whole character


def test_braces_are_filled_once():
    assert fill("A {b} c. {}", "The {x} of {} is") == ("A {b} c. The {x} of ", " is")
    tokenizer = tiny_tokenizer()
    row = encode(tokenizer, *fill("{}", "{} is")[:1], "{} {0} {s}", " is", "a {} b")
    assert tokenizer.decode(row.ids) + tokenizer.decode(row.target[-1:]) == "{} {0} {s} is a {} b"
    for bad in ("no place", "{} and {}"):
        with pytest.raises(ValueError, match="exactly one"):
            fill("{}", bad)
        with pytest.raises(ValueError, match="exactly one"):
            fill(bad, "{} is")


def test_what_cannot_be_meant_is_refused():
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    with pytest.raises(ValueError, match="ascending"):
        SerialSettings(layers=(2, 1))
    with pytest.raises(ValueError, match="bare prompt"):
        value_vector(model, tokenizer, REQUESTS[0], SETTINGS, CONTEXTS[1:])
    with pytest.raises(ValueError, match="bare prompt"):
        key(model, tokenizer, REQUESTS[0], 1, [])
    with pytest.raises(ValueError, match="eval mode"):
        value_vector(tiny_llama().train(), tokenizer, REQUESTS[0], SETTINGS, CONTEXTS)
    with pytest.raises(ValueError, match="no requests"):
        update(model, tokenizer, [], SETTINGS, CONTEXTS, {})


# --- the value vector


@both
@precisions
def test_the_loss_falls_and_delta_stays_in_its_ball(build: Callable, dtype: torch.dtype):
    model, tokenizer = build(dtype=dtype), tiny_tokenizer()
    for request in REQUESTS:
        value = optimise_value(model, tokenizer, request, SETTINGS, CONTEXTS)
        losses = [t["total"] for t in value.trace]
        assert len(losses) == SETTINGS.steps
        assert losses[-1] < losses[0] - 0.1
        assert value.trace[0]["kl"] == pytest.approx(0, abs=1e-6)
        assert value.trace[0]["decay"] == 0
        assert value.z.dtype == dtype
        assert value.z.shape == (WIDTH,)
        assert 0 < value.delta.norm() <= SETTINGS.clamp * value.h.norm() * (1 + 1e-5)
        bare = outputs(model, tokenizer, [request], SETTINGS.layers[-1])[0]
        torch.testing.assert_close(value.h, bare, rtol=1e-4, atol=1e-4)


@both
def test_a_narrow_clamp_binds(build: Callable):
    narrow = dataclasses.replace(SETTINGS, clamp=0.05)
    value = optimise_value(build(dtype=torch.float64), tiny_tokenizer(), REQUESTS[0], narrow, CONTEXTS)
    assert value.delta.norm() == pytest.approx(0.05 * value.h.norm().item(), rel=1e-12)


@both
def test_optimisation_stops_below_the_floor_before_stepping(build: Callable):
    model, tokenizer = build(), tiny_tokenizer()
    free = optimise_value(model, tokenizer, REQUESTS[1], SETTINGS, CONTEXTS)
    losses = [t["total"] for t in free.trace]
    floor = min(losses[:-1]) + 1e-6
    stop = next(i for i, loss in enumerate(losses) if loss < floor)
    floored = dataclasses.replace(SETTINGS, loss_floor=floor)
    stopped = optimise_value(model, tokenizer, REQUESTS[1], floored, CONTEXTS)
    assert [t["total"] for t in stopped.trace] == losses[: stop + 1]
    truncated = dataclasses.replace(SETTINGS, steps=stop + 1)
    again = optimise_value(model, tokenizer, REQUESTS[1], truncated, CONTEXTS)
    assert torch.equal(stopped.delta, again.delta)


def test_one_step_only_evaluates():
    once = dataclasses.replace(SETTINGS, steps=1)
    value = optimise_value(tiny_llama(), tiny_tokenizer(), REQUESTS[0], once, CONTEXTS)
    assert len(value.trace) == 1
    assert not value.delta.any()


@both
def test_the_gradient_agrees_with_finite_differences(build: Callable):
    model = build(dtype=torch.float64)
    # strong KL and decay, so that an error in either would show
    heavy = dataclasses.replace(SETTINGS, kl_factor=2.0, weight_decay=20.0)
    objective = ValueObjective(model, tiny_tokenizer(), REQUESTS[0], heavy, CONTEXTS)
    objective(objective.zero())
    generator = torch.Generator().manual_seed(3)
    at = torch.randn(WIDTH, dtype=torch.float64, generator=generator)
    at = (at * 0.4 * objective.h.norm() / at.norm()).requires_grad_()
    eps = 1e-5
    for term in ("total", "nll", "kl", "decay"):
        (gradient,) = torch.autograd.grad(getattr(objective(at), term), at)
        assert gradient.norm() > 1e-4
        for _ in range(4):
            way = functional.normalize(torch.randn(WIDTH, dtype=torch.float64, generator=generator), dim=0)
            with torch.no_grad():
                up, low = (getattr(objective(at + s * eps * way), term).item() for s in (1, -1))
            assert (up - low) / (2 * eps) == pytest.approx(float(gradient @ way), rel=1e-5, abs=1e-8)


@both
def test_the_loss_is_what_unpadded_passes_one_by_one_give(build: Callable):
    """Each row alone, delta added to the output of the block's down projection at one place."""
    model, tokenizer, request = build(dtype=torch.float64), tiny_tokenizer(), REQUESTS[2]
    objective = ValueObjective(model, tokenizer, request, SETTINGS, CONTEXTS)
    objective(objective.zero())
    delta = torch.randn(WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    got = objective(delta)

    @torch.no_grad()
    def log_probs(text: str, place: int, shift: torch.Tensor) -> torch.Tensor:
        def add(_m: nn.Module, _i: tuple, out: torch.Tensor) -> torch.Tensor:
            out = out.clone()
            out[0, place] += shift
            return out

        handle = down(model, SETTINGS.layers[-1]).register_forward_hook(add)
        logits = model(torch.tensor([tokenizer(text)["input_ids"]])).logits[0]
        handle.remove()
        return logits.log_softmax(-1)

    nll = []
    for context in CONTEXTS:
        before = context.replace("{}", request.prompt).replace("{}", request.subject)
        place = len(tokenizer(before.split(",")[0])["input_ids"]) - 1
        ids = tokenizer(before + " " + request.target)["input_ids"]
        first = len(tokenizer(before)["input_ids"])
        lp = log_probs(before + " " + request.target, place, delta)
        nll.append(-sum(lp[i - 1, ids[i]] for i in range(first, len(ids))) / (len(ids) - first))
    torch.testing.assert_close(got.nll, sum(nll) / len(nll))

    place = len(tokenizer(request.subject)["input_ids"]) - 1
    old = log_probs(f"{request.subject} is a", place, delta * 0)[place]
    new = log_probs(f"{request.subject} is a", place, delta)[place]
    torch.testing.assert_close(got.kl, SETTINGS.kl_factor * (new.exp() * (new - old)).sum())
    torch.testing.assert_close(got.total, got.nll + got.kl + got.decay)


def test_both_precisions_find_nearly_the_same_value():
    short = dataclasses.replace(SETTINGS, steps=5)
    single, double = (
        value_vector(tiny_llama(dtype=dtype), tiny_tokenizer(), REQUESTS[0], short, CONTEXTS)
        for dtype in (torch.float32, torch.float64)
    )
    torch.testing.assert_close(single.double(), double, rtol=1e-2, atol=1e-2)


# --- keys and covariance


@both
def test_half_of_a_key_is_the_bare_prompt(build: Callable):
    model, tokenizer, request = build(dtype=torch.float64), tiny_tokenizer(), REQUESTS[0]

    def alone(text_before_end: str) -> torch.Tensor:
        seen = []
        handle = down(model, 1).register_forward_pre_hook(lambda _m, args: seen.append(args[0][0, -1].clone()))
        with torch.no_grad():
            model(torch.tensor([tokenizer(text_before_end)["input_ids"]]))
        handle.remove()
        return seen[0]

    upto = "The mayor of São Paulo"
    bare, *rest = [alone(context.replace("{}", upto)) for context in CONTEXTS]
    torch.testing.assert_close(key(model, tokenizer, request, 1, CONTEXTS), 0.5 * bare + 0.25 * sum(rest))
    torch.testing.assert_close(key(model, tokenizer, request, 1, ["{}"]), bare)
    torch.testing.assert_close(key(model, tokenizer, request, 1, CONTEXTS[:2]), 0.5 * bare + 0.5 * rest[0])
    several = keys(model, tokenizer, REQUESTS, 1, CONTEXTS)
    assert several.shape == (len(REQUESTS), INNER)
    torch.testing.assert_close(several[0], key(model, tokenizer, request, 1, CONTEXTS))


@both
@precisions
def test_covariance_is_the_second_moment_of_the_keys(build: Callable, dtype: torch.dtype):
    model, rows = build(dtype=dtype), some_rows()
    got = covariance(model, rows, (1, 3))
    ragged = covariance(model, [rows[0], *rows[1:]], (1, 3))
    seen = []
    handle = down(model, 3).register_forward_pre_hook(lambda _m, args: seen.append(args[0].flatten(0, 1)))
    with torch.no_grad():
        model(rows)
    handle.remove()
    k = seen[0].double()
    assert set(got) == {1, 3}
    assert got[3].dtype == torch.float64
    torch.testing.assert_close(got[3], k.T @ k / rows.numel(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got[1], ragged[1])


def test_covariance_weighs_tokens_not_rows():
    model, rows = tiny_gpt2(dtype=torch.float64), some_rows(2, 20)
    long, short = rows[0], rows[1][:5]
    each = [covariance(model, [row], (2,))[2] for row in (long, short)]
    torch.testing.assert_close(covariance(model, [long, short], (2,))[2], (20 * each[0] + 5 * each[1]) / 25)


# --- the update


@both
@precisions
def test_the_model_is_left_unchanged(build: Callable, dtype: torch.dtype):
    model, tokenizer = build(dtype=dtype), tiny_tokenizer()
    before = {name: p.clone() for name, p in model.state_dict().items()}
    asked = {name: p.requires_grad for name, p in model.named_parameters()}
    moment = covariance(model, some_rows(), SETTINGS.layers)
    deltas = update(model, tokenizer, REQUESTS, SETTINGS, CONTEXTS, moment)
    assert list(deltas) == [1, 2]
    assert all(d.shape == (WIDTH, INNER) and d.dtype == torch.float64 for d in deltas.values())
    with applied(model, deltas):
        assert not torch.equal(down(model, 1).weight, before[_weight_name(model, 1)])
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())
    assert {name: p.requires_grad for name, p in model.named_parameters()} == asked
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_the_model_is_restored_when_the_update_fails():
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    before = down(model, 1).weight.detach().clone()
    moment = covariance(model, some_rows(), (1,))  # layer 2 is missing
    short = dataclasses.replace(SETTINGS, steps=2)
    with pytest.raises(KeyError):
        update(model, tokenizer, REQUESTS, short, CONTEXTS, moment)
    assert torch.equal(down(model, 1).weight, before)


def _weight_name(model: PreTrainedModel, layer: int) -> str:
    return next(n for n, p in model.named_parameters() if p is down(model, layer).weight)


@both
def test_with_a_tiny_lambda_the_outputs_become_the_values(build: Callable):
    model, tokenizer = build(dtype=torch.float64), tiny_tokenizer()
    tiny = dataclasses.replace(SETTINGS, mom2_weight=1e-7)
    z = torch.stack([value_vector(model, tokenizer, r, tiny, ["{}"]) for r in REQUESTS])
    moment = covariance(model, some_rows(), tiny.layers)
    deltas = update(model, tokenizer, REQUESTS, tiny, ["{}"], moment)
    before = outputs(model, tokenizer, REQUESTS, 2)
    with applied(model, deltas):
        after = outputs(model, tokenizer, REQUESTS, 2)
    assert ((after - z).norm(dim=1) < 1e-3 * (before - z).norm(dim=1)).all()


@both
def test_each_layer_takes_its_share_of_the_residual_left(build: Callable):
    """Layers 0, 1, 2 take 1/3, 1/2 and all of what is missing at layer 2 under the weights of the moment."""
    model, tokenizer = build(dtype=torch.float64), tiny_tokenizer()
    settings = dataclasses.replace(SETTINGS, layers=(0, 1, 2), steps=4, mom2_weight=3.0)
    z = torch.stack([value_vector(model, tokenizer, r, settings, CONTEXTS) for r in REQUESTS])
    moment = covariance(model, some_rows(), settings.layers)
    deltas = update(model, tokenizer, REQUESTS, settings, CONTEXTS, moment, values=z)
    original = {name: p.clone() for name, p in model.state_dict().items()}
    for layer, share in ((0, 1 / 3), (1, 1 / 2), (2, 1)):
        k = keys(model, tokenizer, REQUESTS, layer, CONTEXTS).T
        r = share * (z - outputs(model, tokenizer, REQUESTS, 2)).T
        d = deltas[layer]
        # the minimum of 3 tr(D C D^T) + |D K - R|^2
        torch.testing.assert_close(3.0 * d @ moment[layer], (r - d @ k) @ k.T, rtol=1e-7, atol=1e-7)
        with torch.no_grad():
            module = down(model, layer)
            module.weight += d if isinstance(module, nn.Linear) else d.T
    model.load_state_dict(original)
    fresh = update(model, tokenizer, REQUESTS, settings, CONTEXTS, moment)
    assert all(torch.equal(fresh[layer], deltas[layer]) for layer in deltas)


def test_solve_and_orientation():
    g = torch.Generator().manual_seed(0)
    r, k = torch.randn(3, 2, generator=g), torch.randn(5, 2, generator=g)
    a = torch.randn(5, 9, generator=g).double()
    c = a @ a.T / 9
    wanted = r.double() @ k.double().T @ torch.linalg.inv(2.5 * c + k.double() @ k.double().T)
    torch.testing.assert_close(solve(r, k, c, 2.5), wanted)
    square = torch.arange(4.0).reshape(2, 2)
    assert torch.equal(oriented(nn.Linear(2, 2), square), square)
    assert torch.equal(oriented(down(tiny_gpt2(), 0), square), square.T)


def test_the_tiny_models_are_what_they_say():
    assert len(tiny_tokenizer()) <= VOCABULARY
    for build in BUILDERS:
        one, same, other = build(1), build(1), build(2)
        name = _weight_name(one, 0)
        assert torch.equal(one.state_dict()[name], same.state_dict()[name])
        assert not torch.equal(one.state_dict()[name], other.state_dict()[name])
        assert build(0, torch.float64).dtype == torch.float64
    with torch.no_grad():
        ids = some_rows(1)
        single, double = (tiny_llama(1, dtype)(ids).logits for dtype in (torch.float32, torch.float64))
    assert double.dtype == torch.float64
    torch.testing.assert_close(single.double(), double, rtol=1e-3, atol=1e-3)
    assert not any(isinstance(m, LlamaRMSNorm) for m in tiny_llama(1, torch.float64).modules())
