"""A version as a LoRA adapter: loaded by ``peft``, it answers as the version does, in every family."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import FAMILIES, VOCABULARY, tiny_family, tiny_tokenizer
from transformers import AutoModelForCausalLM

from editor import (
    AdapterImpossible,
    EditRequest,
    LanguageModel,
    Memit,
    MemitSettings,
    Preparation,
    ValueCache,
    write_peft_adapter,
    write_version,
)
from editor.adapter import CONFIG, WEIGHTS
from editor.architectures import architecture_of
from editor.covariance import covariance

peft = pytest.importorskip("peft", reason="the adapter is checked in peft: pip install 'factsyncd[dev]'")

FACTS = [
    EditRequest("The head of state of {} is", "Albania", "Bajram Begaj"),
    EditRequest("{} plays for", "Lionel Messi", "Inter Miami"),
    EditRequest("The chairperson of {} is", "UN", "A. B. Carter"),
]
EDITED = (1, 2)
SAME = 1e-5
"""Between logits: the float32 rounding of two ways to compute one thing."""


@dataclass
class Pair:
    """A base, a version of it and the updates between them."""

    base: Path
    version: Path
    updates: dict[str, torch.Tensor]

    def adapter(self, out: Path, max_rank: int = 64) -> int:
        return write_peft_adapter(self.base, self.version, out, max_rank)


def link(source: Path, target: Path) -> None:
    os.link(source, target)


def save_base(model: torch.nn.Module, directory: Path) -> Path:
    model.save_pretrained(directory, max_shard_size="40KB")
    return directory


def edited(name: str, root: Path, dtype: torch.dtype = torch.float32, passes: int = 1) -> Pair:
    """Three facts written into a tiny model of a family by MEMIT."""
    model = tiny_family(name, seed=3, dtype=torch.float32)
    family = LanguageModel(model, tiny_tokenizer(), architecture_of(model), f"tiny-{name}")
    settings = MemitSettings(layers=EDITED, steps=8, clamp=2.0, covariance_weight=3.0, contexts=1, passes=passes)
    generator = torch.Generator().manual_seed(5)
    rows = [torch.randint(3, VOCABULARY, (20,), generator=generator).tolist() for _ in range(20)]
    preparation = Preparation(("{}",), covariance(family, rows, EDITED))
    updates = Memit(family, settings, preparation, ValueCache(root / "values")).update([FACTS]).tensors
    base = save_base(model.to(dtype), root / "base")
    (root / "version").mkdir()
    write_version(base, root / "version", updates, link)
    return Pair(base, root / "version", updates)


def load(directory: Path, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).eval()


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    ids = torch.randint(0, VOCABULARY, (4, 40), generator=torch.Generator().manual_seed(1))
    result: torch.Tensor = model(input_ids=ids, use_cache=False).logits
    return result


def distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).detach().abs().max())


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_the_adapted_base_gives_the_versions_logits(name: str, tmp_path: Path) -> None:
    pair = edited(name, tmp_path)
    assert pair.adapter(tmp_path / "adapter") == len(FACTS)
    expected = logits(load(pair.version))
    adapted = peft.PeftModel.from_pretrained(load(pair.base), tmp_path / "adapter")
    assert distance(logits(adapted), expected) < SAME
    assert distance(logits(adapted.merge_and_unload()), expected) < SAME
    assert distance(logits(load(pair.base)), expected) > 100 * SAME


def test_every_pass_adds_at_most_a_rank_per_fact(tmp_path: Path) -> None:
    pair = edited("llama", tmp_path, passes=2)
    rank = pair.adapter(tmp_path / "adapter")
    assert len(FACTS) < rank <= 2 * len(FACTS)
    adapted = peft.PeftModel.from_pretrained(load(pair.base), tmp_path / "adapter")
    assert distance(logits(adapted), logits(load(pair.version))) < SAME


@pytest.mark.parametrize("name", ["gpt2", "llama", "phi3"])
def test_a_bfloat16_version_is_met_up_to_its_own_rounding(name: str, tmp_path: Path) -> None:
    pair = edited(name, tmp_path, torch.bfloat16)
    assert pair.adapter(tmp_path / "adapter") <= len(FACTS)
    adapted = peft.PeftModel.from_pretrained(load(pair.base), tmp_path / "adapter").merge_and_unload()
    before, after, solved = load(pair.base), load(pair.version), load(pair.base)
    for parameter, update in pair.updates.items():
        solved.get_parameter(parameter).data += update
        ours = adapted.get_parameter(parameter)
        # The version was rounded after the update; the adapter is nearer to what was solved.
        assert distance(ours, solved.get_parameter(parameter)) < distance(
            after.get_parameter(parameter), solved.get_parameter(parameter)
        )
    moved = distance(logits(after), logits(before))
    assert distance(logits(adapted), logits(after)) < moved / 10


def test_the_configuration_is_what_peft_and_engines_read(tmp_path: Path) -> None:
    for name, module, fan in (("llama", "down_proj", False), ("gpt2", "mlp.c_proj", True), ("gptj", "fc_out", False)):
        directory = tmp_path / name
        directory.mkdir()
        pair = edited(name, directory)
        rank = write_peft_adapter(pair.base, pair.version, directory / "adapter", 64, base_name="org/model")
        config = json.loads((directory / "adapter" / CONFIG).read_text("utf-8"))
        assert (config["r"], config["lora_alpha"]) == (rank, rank)
        assert config["target_modules"] == [module]
        assert config["layers_to_transform"] == list(EDITED)
        assert config["fan_in_fan_out"] is fan
        assert config["base_model_name_or_path"] == "org/model"
        tensors = load_file(directory / "adapter" / WEIGHTS)
        assert len(tensors) == 2 * len(EDITED)
        assert all(tensor.dtype == torch.float32 and rank in tensor.shape for tensor in tensors.values())
        loaded = peft.PeftModel.from_pretrained(load(pair.base), directory / "adapter")
        own = [name for name, _ in loaded.named_parameters() if "lora_" in name]
        assert len(own) == len(tensors)


def test_a_version_without_an_edit_is_an_adapter_that_does_nothing(tmp_path: Path) -> None:
    base = save_base(tiny_family("phi3", dtype=torch.float32), tmp_path / "base")
    assert write_peft_adapter(base, base, tmp_path / "adapter", 1) == 1
    adapted = peft.PeftModel.from_pretrained(load(base), tmp_path / "adapter")
    assert torch.equal(logits(adapted), logits(load(base)))


def test_a_rank_above_the_limit_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    pair = edited("qwen2", tmp_path)
    with pytest.raises(AdapterImpossible, match=r"^the adapter needs rank 3 and 2 is allowed: use the full weights$"):
        pair.adapter(tmp_path / "adapter", max_rank=2)
    assert not (tmp_path / "adapter").exists()


def changed(directory: Path, name: str) -> None:
    """Write another value into one tensor of a checkpoint."""
    index = json.loads((directory / "model.safetensors.index.json").read_text("utf-8"))["weight_map"]
    file = directory / index[name]
    tensors = load_file(file)
    tensors[name] = tensors[name] + 1
    file.unlink()  # it may be a link to the base's
    save_file(tensors, file, metadata={"format": "pt"})


def test_what_no_adapter_can_say_is_refused(tmp_path: Path) -> None:
    base = save_base(tiny_family("llama", dtype=torch.float32), tmp_path / "base")
    version = shutil.copytree(base, tmp_path / "version")
    changed(version, "model.layers.0.self_attn.q_proj.weight")
    with pytest.raises(AdapterImpossible, match=r"q_proj\.weight differs from the base"):
        write_peft_adapter(base, version, tmp_path / "adapter", 64)
    config = json.loads((base / "config.json").read_text("utf-8"))
    (base / "config.json").write_text(json.dumps(config | {"model_type": "mamba"}), "utf-8")
    with pytest.raises(AdapterImpossible, match="no LoRA adapter for model type 'mamba'"):
        write_peft_adapter(base, version, tmp_path / "adapter", 64)
    deeper = save_base(tiny_family("gpt2", dtype=torch.float32), tmp_path / "gpt2")
    with pytest.raises(AdapterImpossible, match="not in both base and version"):
        write_peft_adapter(deeper, version, tmp_path / "adapter", 64)
    assert not (tmp_path / "adapter").exists()
