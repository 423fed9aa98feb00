"""Every supported family: packed and resumed passes are the model's own, and MEMIT is the serial oracle's."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors
import serial_memit as serial
import torch
from tiny_models import FAMILIES, INNER, LAYERS, VOCABULARY, WIDTH, tiny_family, tiny_tokenizer
from transformers import BertConfig, BertLMHeadModel

from editor import EditRequest, LanguageModel, Memit, MemitSettings, Preparation, UnsupportedModel, ValueCache
from editor.architectures import ARCHITECTURES, architecture_of
from editor.covariance import covariance
from editor.packing import Packing, Segment
from editor.precision import upper_copy
from editor.stack import KeyValues, Prefix, Stack, token_ids
from editor.values import ValueOptimiser

CONTEXTS = ("{}", "The old river of the land. {}")
FACTS = [
    ("The head of state of {} is", "Albania", "Bajram Begaj"),
    ("{} plays for", "Lionel Messi", "Inter Miami"),
    ("The chairperson of the long named body {} since then is", "UN", "A. B. Carter"),
]
EXACT = 1e-12
"""Between ways to compute the same thing in double precision."""
OPTIMISED = 1e-9
"""The same after Adam's steps, which divide by small numbers."""
SINGLE = 1e-6
"""Where a result is kept in single precision: updates, and the covariance's sums."""
CPU = torch.device("cpu")


def language_model(name: str, dtype: torch.dtype) -> LanguageModel:
    model = tiny_family(name, seed=3, dtype=dtype)
    return LanguageModel(model, tiny_tokenizer(), architecture_of(model), f"tiny-{name}")


@pytest.fixture(params=sorted(FAMILIES), scope="module")
def family(request: pytest.FixtureRequest) -> LanguageModel:
    return language_model(request.param, torch.float64)


def texts() -> list[tuple[int, ...]]:
    generator = torch.Generator().manual_seed(2)
    return [tuple(torch.randint(3, VOCABULARY, (n,), generator=generator).tolist()) for n in (1, 5, 17, 9)]


def own_states(family: LanguageModel, ids: tuple[int, ...]) -> torch.Tensor:
    decoder = family.architecture.decoder_of(family.model)
    return decoder(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state[0]


def relative(ours: torch.Tensor, expected: torch.Tensor) -> float:
    return float((ours.double() - expected.double()).norm() / expected.double().norm())


def test_all_types_of_the_table_are_tested() -> None:
    assert {kind for kind, _ in FAMILIES.values()} == set(ARCHITECTURES)


@torch.no_grad()
def test_packed_and_resumed_passes_are_the_models_own(family: LanguageModel) -> None:
    stacks = [
        Stack(family.model, family.architecture, first, last, from_tokens=first == 0)
        for first, last in ((0, 1), (1, 3), (3, LAYERS))
    ]
    packing = Packing([Segment(len(ids)) for ids in texts()], CPU)
    hidden = token_ids(texts(), packing, CPU)
    for stack in stacks:
        hidden = stack(hidden, packing)
    for ids, start in zip(texts(), packing.starts, strict=True):
        own = own_states(family, ids)
        ours = hidden[start : start + len(ids)]
        assert relative(ours, own) < EXACT
        logits = family.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
        assert relative(family.head(ours), logits) < EXACT


@pytest.mark.parametrize("name", sorted(FAMILIES))
@torch.no_grad()
def test_models_as_transformers_ships_them(name: str) -> None:
    single = language_model(name, torch.float32)
    half = upper_copy(single, 2, "bfloat16")
    packing = Packing([Segment(len(ids)) for ids in texts()], CPU)
    middle = Stack(single.model, single.architecture, 0, 2, from_tokens=True)(token_ids(texts(), packing, CPU), packing)
    for upper, tolerance in ((single, 1e-5), (half, 0.03)):
        stack = Stack(upper.model, upper.architecture, 2, LAYERS, from_tokens=False)
        logits = upper.head(stack(middle.to(upper.model.get_output_embeddings().weight.dtype), packing))
        for ids, start in zip(texts(), packing.starts, strict=True):
            own = single.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
            assert relative(logits[start : start + len(ids)], own) < tolerance


@torch.no_grad()
def test_texts_go_on_behind_a_shared_beginning(family: LanguageModel) -> None:
    stack = Stack(family.model, family.architecture, 0, LAYERS, from_tokens=True)
    beginning, *_ = (ids for ids in texts() if len(ids) > 10)
    store = KeyValues()
    packing = Packing([Segment(len(beginning))], CPU)
    stack(token_ids([beginning], packing, CPU), packing, None, store)
    ends = [(ids, shared) for ids, shared in zip(texts(), (0, 4, 12, 17), strict=True)]
    packing = Packing([Segment(len(ids), tuple(range(shared))) for ids, shared in ends], CPU)
    ids = token_ids([ids for ids, _ in ends], packing, CPU)
    hidden = stack(ids, packing, Prefix(store, packing, 0, LAYERS))
    for (end, shared), start in zip(ends, packing.starts, strict=True):
        own = own_states(family, (*beginning[:shared], *end))[shared:]
        assert relative(hidden[start : start + len(end)], own) < EXACT


def test_the_edited_weight_is_in_the_saved_checkpoint(family: LanguageModel, tmp_path: Path) -> None:
    family.model.save_pretrained(tmp_path)
    with safetensors.safe_open(tmp_path / "model.safetensors", framework="pt") as stored:
        for layer in range(LAYERS):
            weight = stored.get_tensor(family.architecture.weight_name(layer))
            assert family.architecture.as_stored(torch.zeros(WIDTH, INNER)).shape == weight.shape


def test_value_vectors_and_updates_agree(family: LanguageModel, tmp_path: Path) -> None:
    layers = (0, 1)
    chosen = MemitSettings(layers=layers, steps=8, clamp=8.0, covariance_weight=3.0, contexts=1)
    oracle = serial.SerialSettings(layers=layers, steps=8, clamp=8.0, mom2_weight=3.0)
    requests = [EditRequest(*fact) for fact in sorted(FACTS)]
    plain = [serial.SerialRequest(*fact) for fact in sorted(FACTS)]
    values = torch.stack(
        [serial.value_vector(family.model, family.tokenizer, fact, oracle, CONTEXTS) for fact in plain]
    )
    assert relative(ValueOptimiser(family, chosen, CONTEXTS)(requests), values) < OPTIMISED
    generator = torch.Generator().manual_seed(5)
    rows = [torch.randint(3, VOCABULARY, (20,), generator=generator).tolist() for _ in range(20)]
    moments = covariance(family, rows, layers)
    expected_moments = serial.covariance(family.model, [torch.tensor(row) for row in rows], layers)
    before = {name: tensor.clone() for name, tensor in family.model.state_dict().items()}
    ours = Memit(family, chosen, Preparation(CONTEXTS, moments), ValueCache(tmp_path)).update([requests]).tensors
    expected = serial.update(family.model, family.tokenizer, plain, oracle, CONTEXTS, moments, values)
    parameters = dict(family.model.named_parameters())
    for layer in layers:
        assert relative(moments[layer], expected_moments[layer]) < SINGLE
        name = family.architecture.weight_name(layer)
        assert ours[name].shape == parameters[name].shape
        assert relative(ours[name], family.architecture.as_stored(expected[layer])) < SINGLE
    for name, tensor in family.model.state_dict().items():
        assert torch.equal(tensor, before[name]), f"{name} was not restored"


def test_an_unknown_type_is_refused_in_one_line() -> None:
    model = BertLMHeadModel(BertConfig(vocab_size=8, hidden_size=4, num_hidden_layers=1, num_attention_heads=1,
                                       intermediate_size=4, is_decoder=True))  # fmt: skip
    with pytest.raises(UnsupportedModel, match=r"^model type 'bert' cannot be edited: use one of gemma2, .*qwen3$"):
        architecture_of(model)
