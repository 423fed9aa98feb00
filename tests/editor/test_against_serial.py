"""The batched editor against the plain serial oracle: same value vectors, keys and updates."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import serial_memit as serial
import torch
from tiny_models import tiny_gpt2, tiny_llama, tiny_tokenizer
from transformers import PreTrainedModel

from editor import EditRequest, LanguageModel, Memit, MemitSettings, Preparation, ValueCache
from editor.architectures import architecture_of
from editor.covariance import covariance
from editor.insertion import Batch, Insertion
from editor.values import ValueOptimiser

CONTEXTS = ("{}", "The old river. {}", "Because of rain, we all stayed at home. {}")
FACTS = [
    ("The head of state of {} is", "Albania", "Bajram Begaj"),
    ("{} plays for", "Lionel Messi", "Inter Miami"),
    ("{}, the capital of which is", "Kazakhstan", "Astana"),
    ("The chairperson of the long named body {} since then is", "UN", "A. B. Carter {Jr}"),
    ("{} is", "Q", "x"),
]
TOLERANCE = 1e-4


def settings(**overrides: object) -> MemitSettings:
    defaults = {"layers": (0, 1, 2), "steps": 12, "covariance_weight": 3.0, "contexts": 2}
    return MemitSettings.model_validate(defaults | overrides)


def oracle_settings(of: MemitSettings) -> serial.SerialSettings:
    return serial.SerialSettings(
        layers=of.layers, steps=of.steps, lr=of.learning_rate, weight_decay=of.weight_decay,
        kl_factor=of.kl_factor, clamp=of.clamp, mom2_weight=of.covariance_weight, loss_floor=of.loss_floor,
        enough=of.enough, turns=of.turns,
    )  # fmt: skip


def relative(ours: torch.Tensor, oracle: torch.Tensor) -> float:
    return float((ours.double() - oracle.double()).norm() / oracle.double().norm())


def ordinary_rows(count: int = 40) -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    return [
        torch.randint(3, 470, (int(n),), generator=generator).tolist()
        for n in torch.randint(8, 30, (count,), generator=generator)
    ]


@pytest.mark.parametrize(("clamp", "turns"), [(0.75, 1), (8.0, 1), (8.0, 2), (8.0, 5)])
def test_value_vectors_agree(tiny: LanguageModel, clamp: float, turns: int) -> None:
    chosen = settings(clamp=clamp, turns=turns)
    ours = ValueOptimiser(tiny, chosen, CONTEXTS)([EditRequest(*fact) for fact in FACTS])
    for vector, fact in zip(ours, FACTS, strict=True):
        oracle = serial.value_vector(
            tiny.model, tiny.tokenizer, serial.SerialRequest(*fact), oracle_settings(chosen), CONTEXTS
        )
        assert relative(vector, oracle) < TOLERANCE


def serial_values(tiny: LanguageModel, chosen: MemitSettings) -> list[serial.Value]:
    return [
        serial.optimise_value(
            tiny.model, tiny.tokenizer, serial.SerialRequest(*fact), oracle_settings(chosen), CONTEXTS
        )
        for fact in FACTS
    ]


@pytest.mark.parametrize(
    ("rule", "traced", "turns"), [("loss_floor", "total", 1), ("enough", "least", 1), ("loss_floor", "total", 2)]
)
def test_a_fact_that_stops_early_keeps_its_vector_while_others_go_on(
    tiny: LanguageModel, rule: str, traced: str, turns: int
) -> None:
    endless = settings(clamp=20.0, steps=30, loss_floor=0.0, turns=turns)
    # Between two steps of one fact, so that rounding does not decide when it stops.
    around = sorted(value.trace[15][traced] + value.trace[16][traced] for value in serial_values(tiny, endless))
    halfway = around[len(FACTS) // 2] / 2
    chosen = endless.model_copy(update={rule: halfway})
    ours = ValueOptimiser(tiny, chosen, CONTEXTS)([EditRequest(*fact) for fact in FACTS])
    expected = serial_values(tiny, chosen)
    assert len({len(value.trace) for value in expected}) > 1, "the facts must stop at different steps"
    for vector, value in zip(ours, expected, strict=True):
        assert relative(vector, value.z) < TOLERANCE


def serial_shared_delta(
    tiny: LanguageModel, chosen: MemitSettings, requests: list[EditRequest]
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The outputs of block L and the one delta of several facts about one subject, by the plain objective."""
    objectives = [
        serial.ValueObjective(
            tiny.model, tiny.tokenizer, serial.SerialRequest(request.prompt, request.subject, request.target),
            oracle_settings(chosen), CONTEXTS,
        )
        for request in requests
    ]  # fmt: skip
    delta = objectives[0].zero()
    adam = torch.optim.Adam([delta], lr=chosen.learning_rate)
    for step in range(chosen.steps - 1):
        losses = [objective(delta, step) for objective in objectives]
        origins = [objective.h for objective in objectives if objective.h is not None]
        length = torch.stack([origin.norm() for origin in origins]).mean()
        decay = chosen.weight_decay * delta.norm() / length**2
        total = torch.stack([loss.nll for loss in losses]).mean() + losses[0].kl + decay
        adam.zero_grad()
        total.backward()
        adam.step()
        with torch.no_grad():
            delta.mul_((chosen.clamp * length / delta.norm()).clamp(max=1))
    return origins, delta.detach()


def test_facts_about_one_subject_share_one_delta(tiny: LanguageModel) -> None:
    chosen = settings(clamp=8.0, loss_floor=0.0)
    about = [
        EditRequest("{} plays for", "Lionel Messi", "Inter Miami"),
        EditRequest("The city where {} lives is", "Lionel Messi", "Miami"),
    ]
    other = EditRequest("{} is", "Q", "x")
    first, alone, second = ValueOptimiser(tiny, chosen, CONTEXTS)([about[0], other, about[1]])
    origins, delta = serial_shared_delta(tiny, chosen, about)
    assert relative(first, origins[0] + delta) < TOLERANCE
    assert relative(second, origins[1] + delta) < TOLERANCE
    assert torch.equal(alone, ValueOptimiser(tiny, chosen, CONTEXTS)([other])[0])


def test_covariance_agrees(tiny: LanguageModel) -> None:
    rows = ordinary_rows()
    oracle = serial.covariance(tiny.model, [torch.tensor(row) for row in rows], [0, 2])
    for layer, ours in covariance(tiny, rows, [0, 2]).items():
        assert relative(ours, oracle[layer]) < TOLERANCE


@pytest.mark.parametrize("layers", [(0, 1, 2), (1,), (0, 2)])
def test_updates_agree(tiny: LanguageModel, tmp_path: Path, layers: tuple[int, ...]) -> None:
    chosen = settings(layers=layers)
    moments = covariance(tiny, ordinary_rows(), layers)
    before = {name: tensor.clone() for name, tensor in tiny.model.state_dict().items()}
    memit = Memit(tiny, chosen, Preparation(CONTEXTS, moments), ValueCache(tmp_path))
    ours = memit.update([[EditRequest(*fact) for fact in FACTS]]).tensors
    requests = [serial.SerialRequest(*fact) for fact in sorted(FACTS)]
    oracle = serial.update(tiny.model, tiny.tokenizer, requests, oracle_settings(chosen), CONTEXTS, moments)
    assert len(ours) == len(layers)
    for layer, delta in oracle.items():
        module = tiny.architecture.down_projection_of(tiny.model, layer)
        stored = ours[tiny.architecture.weight_name(layer)]
        assert stored.shape == module.weight.shape
        assert relative(stored, tiny.architecture.as_stored(delta)) < TOLERANCE
    for name, tensor in tiny.model.state_dict().items():
        assert torch.equal(tensor, before[name]), f"{name} was not restored"


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_single_precision_gives_the_same_updates(make: Callable[..., PreTrainedModel]) -> None:
    chosen = settings(layers=(0, 2), suffix_weight=0.5, passes=2)
    requests = [EditRequest(*fact) for fact in sorted(FACTS)]
    models = {}
    for dtype in (torch.float64, torch.float32):
        model = make(dtype=dtype).requires_grad_(requires_grad=False)
        models[dtype] = LanguageModel(model, tiny_tokenizer(), architecture_of(model), str(dtype))
    moments = covariance(models[torch.float64], ordinary_rows(), chosen.layers)
    values = ValueOptimiser(models[torch.float64], chosen, CONTEXTS)(requests)
    double, single = (
        Insertion(model, chosen, CONTEXTS, moments)([Batch(requests, values)], ["You can see the river."])[0]
        for model in models.values()
    )
    for layer, update in double.items():
        assert relative(single[layer], update) < 5 * TOLERANCE


def test_a_shrunk_covariance_is_partly_the_identity(tiny: LanguageModel, tmp_path: Path) -> None:
    chosen = settings(layers=(1,))
    moments = covariance(tiny, ordinary_rows(), [1])
    requests = [EditRequest(*fact) for fact in FACTS]
    shrunk = 0.7 * moments[1] + 0.3 * moments[1].trace() / len(moments[1]) * torch.eye(len(moments[1]))
    ours, expected = (
        Memit(tiny, chosen.model_copy(update={"shrinkage": shrinkage}), Preparation(CONTEXTS, {1: moment}),
              ValueCache(tmp_path)).update([requests]).tensors
        for shrinkage, moment in ((0.3, moments[1]), (0.0, shrunk))
    )  # fmt: skip
    name = tiny.architecture.weight_name(1)
    assert relative(ours[name], expected[name]) < TOLERANCE


def test_other_tokens_resist_as_if_their_keys_were_ordinary_text(tiny: LanguageModel, tmp_path: Path) -> None:
    chosen = settings(layers=(1,), suffix_weight=2.0)
    moments = covariance(tiny, ordinary_rows(), [1])
    memit = Memit(tiny, chosen, Preparation(CONTEXTS, moments), ValueCache(tmp_path))
    ours = memit.update([[EditRequest(*fact) for fact in FACTS]]).tensors
    resisted = moments[1].clone()
    for fact in FACTS:
        row = serial.request_row(tiny.tokenizer, "{}", serial.SerialRequest(*fact), with_target=True)
        # The covariance over a text's first n tokens, times n, is a sum over tokens.
        sums = [
            serial.covariance(tiny.model, [torch.tensor(row.ids[:n])], [1])[1] * n if n else 0
            for n in range(len(row.ids) + 1)
        ]
        for at in range(len(row.ids)):
            if at != row.lookup:
                resisted += chosen.suffix_weight / chosen.covariance_weight * (sums[at + 1] - sums[at])
    oracle = serial.update(
        tiny.model, tiny.tokenizer, [serial.SerialRequest(*fact) for fact in sorted(FACTS)],
        oracle_settings(chosen), CONTEXTS, {1: resisted},
    )  # fmt: skip
    stored = ours[tiny.architecture.weight_name(1)]
    assert relative(stored, tiny.architecture.as_stored(oracle[1])) < TOLERANCE


def test_the_ledger_decides_the_weights(tiny: LanguageModel, tmp_path: Path) -> None:
    chosen = settings()
    preparation = Preparation(CONTEXTS, covariance(tiny, ordinary_rows(), chosen.layers))
    memit = Memit(tiny, chosen, preparation, ValueCache(tmp_path))
    requests = [EditRequest(*fact) for fact in FACTS]
    without = memit.update([requests[:3]]).tensors
    memit.update([requests])
    again = Memit(tiny, chosen, preparation, ValueCache(tmp_path)).update([[*requests[2::-1], requests[0]]]).tensors
    for name, tensor in without.items():
        assert torch.equal(tensor, again[name]), "order, duplicates and retracted facts must leave no trace"
    assert memit.update([]).tensors == {}


@pytest.mark.parametrize("layers", [(1,), (0, 2)])
def test_later_batches_leave_earlier_keys_where_they_are(
    tiny: LanguageModel, tmp_path: Path, layers: tuple[int, ...]
) -> None:
    chosen = settings(layers=layers, strategy="sequential")
    moments = covariance(tiny, ordinary_rows(), layers)
    batches = [sorted(FACTS[:2]), sorted(FACTS[2:])]
    memit = Memit(tiny, chosen, Preparation(CONTEXTS, moments), ValueCache(tmp_path))
    ours = memit.update([[EditRequest(*fact) for fact in batch] for batch in batches]).tensors
    first, second = ([serial.SerialRequest(*fact) for fact in batch] for batch in batches)
    arguments = (oracle_settings(chosen), CONTEXTS)
    # The value vectors are the pristine base's in either batch.
    values = [
        torch.stack([serial.value_vector(tiny.model, tiny.tokenizer, fact, *arguments) for fact in batch])
        for batch in (first, second)
    ]
    before = serial.update(tiny.model, tiny.tokenizer, first, *arguments, moments, values[0])
    keys = keys_while_written(tiny, first, before, layers)
    with serial.applied(tiny.model, before):
        resisted = {layer: moments[layer] + keys[layer].T @ keys[layer] / chosen.covariance_weight for layer in layers}
        after = serial.update(tiny.model, tiny.tokenizer, second, *arguments, resisted, values[1])
    for layer in layers:
        stored = ours[tiny.architecture.weight_name(layer)]
        assert relative(stored, tiny.architecture.as_stored(before[layer] + after[layer])) < TOLERANCE


def keys_while_written(
    tiny: LanguageModel, facts: list[serial.SerialRequest], update: dict[int, torch.Tensor], layers: tuple[int, ...]
) -> dict[int, torch.Tensor]:
    """Each layer's keys as they were when it was written: with the layers below it edited, and not itself."""
    keys = {}
    for layer in layers:
        with serial.applied(tiny.model, {below: update[below] for below in layers if below < layer}):
            keys[layer] = serial.keys(tiny.model, tiny.tokenizer, facts, layer, CONTEXTS).double()
    return keys


def test_how_full_the_layers_are_grows_with_the_ledger(tiny: LanguageModel, tmp_path: Path) -> None:
    chosen = settings(layers=(1,), covariance_weight=0.01)
    memit = Memit(tiny, chosen, Preparation(CONTEXTS, covariance(tiny, ordinary_rows(), [1])), ValueCache(tmp_path))
    loads = [memit.update([[EditRequest(*fact) for fact in FACTS[:count]]]).fit.load for count in (1, 3, 5)]
    assert 0 < loads[0] < loads[1] < loads[2] < 1
    assert loads[2] <= len(FACTS) / 48, "a fact takes up one direction at most"
    weak = chosen.model_copy(update={"covariance_weight": 1e4})
    memit = Memit(tiny, weak, Preparation(CONTEXTS, covariance(tiny, ordinary_rows(), [1])), ValueCache(tmp_path))
    assert memit.update([[EditRequest(*fact) for fact in FACTS]]).fit.unwritten > 0.5
