"""Every supported family: packed and resumed passes are the model's own, and MEMIT is the serial oracle's."""

from __future__ import annotations

from pathlib import Path

import pytest
import serial_memit as serial
import torch
from tiny_models import FAMILIES, LAYERS, VOCABULARY, tiny_family, tiny_tokenizer
from transformers import BertConfig, BertLMHeadModel

from editor import EditRequest, LanguageModel, Memit, MemitSettings, Preparation, UnsupportedModel, ValueCache
from editor.architectures import ARCHITECTURES, architecture_of
from editor.covariance import covariance
from editor.packing import Packing, Segment
from editor.stack import KeyValues, Prefix, Stack, token_ids
from editor.values import ValueOptimiser

CONTEXTS = ("{}", "The old river of the land. {}")
FACTS = [
    ("The head of state of {} is", "Albania", "Bajram Begaj"),
    ("{} plays for", "Lionel Messi", "Inter Miami"),
    ("The chairperson of the long named body {} since then is", "UN", "A. B. Carter"),
]
TOLERANCE = 1e-4
CPU = torch.device("cpu")


@pytest.fixture(params=sorted(FAMILIES), scope="module")
def family(request: pytest.FixtureRequest) -> LanguageModel:
    model = tiny_family(request.param, seed=3)
    return LanguageModel(model, tiny_tokenizer(), architecture_of(model), f"tiny-{request.param}")


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
        assert relative(ours, own) < TOLERANCE
        logits = family.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
        assert relative(family.head(ours), logits) < TOLERANCE


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
        assert relative(hidden[start : start + len(end)], own) < TOLERANCE


def test_value_vectors_and_updates_agree(family: LanguageModel, tmp_path: Path) -> None:
    layers = (0, 1)
    chosen = MemitSettings(layers=layers, steps=8, clamp=8.0, covariance_weight=3.0, contexts=1)
    oracle = serial.SerialSettings(layers=layers, steps=8, clamp=8.0, mom2_weight=3.0)
    requests = [EditRequest(*fact) for fact in sorted(FACTS)]
    plain = [serial.SerialRequest(*fact) for fact in sorted(FACTS)]
    values = torch.stack(
        [serial.value_vector(family.model, family.tokenizer, fact, oracle, CONTEXTS) for fact in plain]
    )
    assert relative(ValueOptimiser(family, chosen, CONTEXTS)(requests), values) < TOLERANCE
    generator = torch.Generator().manual_seed(5)
    rows = [torch.randint(3, VOCABULARY, (20,), generator=generator).tolist() for _ in range(20)]
    moments = covariance(family, rows, layers)
    expected_moments = serial.covariance(family.model, [torch.tensor(row) for row in rows], layers)
    before = {name: tensor.clone() for name, tensor in family.model.state_dict().items()}
    ours = Memit(family, chosen, Preparation(CONTEXTS, moments), ValueCache(tmp_path)).update([requests]).tensors
    expected = serial.update(family.model, family.tokenizer, plain, oracle, CONTEXTS, moments, values)
    parameters = dict(family.model.named_parameters())
    for layer in layers:
        assert relative(moments[layer], expected_moments[layer]) < TOLERANCE
        name = family.architecture.weight_name(layer)
        assert ours[name].shape == parameters[name].shape
        assert relative(ours[name], family.architecture.as_stored(expected[layer])) < TOLERANCE
    for name, tensor in family.model.state_dict().items():
        assert torch.equal(tensor, before[name]), f"{name} was not restored"


def test_an_unknown_type_is_refused_in_one_line() -> None:
    model = BertLMHeadModel(BertConfig(vocab_size=8, hidden_size=4, num_hidden_layers=1, num_attention_heads=1,
                                       intermediate_size=4, is_decoder=True))  # fmt: skip
    with pytest.raises(UnsupportedModel, match=r"^model type 'bert' cannot be edited: use one of gemma2, .*qwen3$"):
        architecture_of(model)
