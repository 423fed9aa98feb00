"""A version as a LoRA adapter of its base, in the form that ``peft`` and serving engines read (Hu et al. 2021).

A MEMIT update of a layer is ``R K^T A^-1``, so its rank is at most the number of edits times passes. What was saved is
that update plus the rounding of the saved dtype. The factors come from a float64 singular value decomposition of the
saved difference, cut where what is left is rounding alone.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import safetensors
import torch
from safetensors.torch import save_file

from editor.architectures import ARCHITECTURES
from editor.checkpoint import shards
from editor.errors import AdapterImpossible

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from torch import Tensor

    from editor.architectures import Architecture

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


def write_peft_adapter(
    base_dir: Path, version_dir: Path, out_dir: Path, max_rank: int, *, base_name: str | None = None
) -> int:
    """Write the adapter that turns a base into a version; the factors are float32.

    With a float32 base the adapted model is the version up to float32 rounding. With a base of fewer bits the version
    was rounded after the update; the adapter leaves most of that rounding out, so it is nearer to the update as it was
    solved than to the version's files.

    Args:
        base_dir: the base checkpoint.
        version_dir: a version of it, as :func:`editor.write_version` writes them.
        out_dir: where to write; made where it is missing. Files of an earlier adapter are replaced.
        max_rank: the highest rank that whatever loads the adapter accepts.
        base_name: the base's name for the adapter's configuration, such as ``org/name``.

    Returns:
        The rank: that of the layer that needs most. All layers have it, so that any engine's loader is content. For a
        version that equals its base it is 1, with factors of zeros.

    Raises:
        AdapterImpossible: the rank is above ``max_rank``, the architecture is not in the table, or the version differs
            from the base in more than the edited projections. Full weights are the way out.
    """
    kind = json.loads((base_dir / "config.json").read_text("utf-8")).get("model_type")
    if kind not in ARCHITECTURES:
        raise AdapterImpossible(f"no LoRA adapter for model type {kind!r}: use the version's full weights")
    architecture = ARCHITECTURES[kind]
    names = sorted(shards(base_dir))
    layer_of = _projections(architecture, names)
    factors = {
        _layer(layer_of, name): _decompose(architecture.as_stored(before), architecture.as_stored(after))
        for name, before, after in _differences(base_dir, version_dir)
    }
    rank = max((rank for rank, _, _ in factors.values()), default=1)
    if rank > max_rank:
        raise AdapterImpossible(f"the adapter needs rank {rank} and {max_rank} is allowed: use the full weights")
    if not factors:
        factors[0] = _nothing(base_dir, architecture)
    tensors: dict[str, Tensor] = {}
    for layer, (_, down, up) in factors.items():
        module = f"base_model.model.{architecture.weight_name(layer).removesuffix('.weight')}"
        tensors[f"{module}.lora_A.weight"] = down[:rank].float().contiguous()
        tensors[f"{module}.lora_B.weight"] = up[:, :rank].float().contiguous()
    out_dir.mkdir(parents=True, exist_ok=True)
    save_file(tensors, out_dir / WEIGHTS, metadata={"format": "pt"})
    config = _config(architecture, names, sorted(factors), rank) | {"base_model_name_or_path": base_name}
    (out_dir / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")
    return rank


def _projections(architecture: Architecture, names: list[str]) -> dict[str, int]:
    """Layer by the name of its edited projection."""
    present = set(names)
    layers: dict[str, int] = {}
    while (name := architecture.weight_name(len(layers))) in present:
        layers[name] = len(layers)
    return layers


def _layer(layer_of: Mapping[str, int], name: str) -> int:
    if name not in layer_of:
        raise AdapterImpossible(f"{name} differs from the base and is no edited projection: use the full weights")
    return layer_of[name]


def _differences(base_dir: Path, version_dir: Path) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, base's and version's tensor wherever they differ."""
    base, version = shards(base_dir), shards(version_dir)
    if base.keys() != version.keys():
        odd = min(base.keys() ^ version.keys())
        raise AdapterImpossible(f"{odd} is not in both base and version: use the full weights")
    for name in sorted(base):
        ours, theirs = base_dir / base[name], version_dir / version[name]
        if ours.samefile(theirs):
            continue
        with safetensors.safe_open(ours, "pt") as before, safetensors.safe_open(theirs, "pt") as after:
            old, new = before.get_tensor(name), after.get_tensor(name)
        if not torch.equal(old, new):
            yield name, old, new


def _decompose(before: Tensor, after: Tensor) -> tuple[int, Tensor, Tensor]:
    """Rank, ``A [n, d_ff]`` and ``B [d, n]`` with ``B A`` the difference of two ``[d, d_ff]`` tensors, float64.

    The rank counts the singular values above the largest that rounding alone would have: the update's to float32 and
    the sum's to the saved dtype. Their errors are uniform within half a unit in the last place, ``ulp / sqrt(12)`` in
    the root mean square; the largest singular value of such a matrix is about ``sqrt(d) + sqrt(d_ff)`` times that
    (Davidson and Szarek 2001).
    """
    difference = after.double() - before.double()
    left, values, right = torch.linalg.svd(difference, full_matrices=False)
    squares = (_ulp(after, after.dtype).square() + _ulp(difference, torch.float32).square()).mean() / 12
    noise = float(squares.sqrt()) * sum(size**0.5 for size in after.shape)
    root = values.sqrt()
    return max(1, int((values > noise).sum())), root.unsqueeze(1) * right, left * root


def _ulp(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Unit in the last place of each number as a number of that type, or up to twice that; float64."""
    return tensor.double().abs() * torch.finfo(dtype).eps


def _nothing(base_dir: Path, architecture: Architecture) -> tuple[int, Tensor, Tensor]:
    """Factors of zeros for the first layer."""
    name = architecture.weight_name(0)
    with safetensors.safe_open(base_dir / shards(base_dir)[name], "pt") as stored:
        width, inner = architecture.as_stored(stored.get_tensor(name)).shape
    return 1, torch.zeros(1, inner), torch.zeros(width, 1)


def _config(architecture: Architecture, names: list[str], layers: list[int], rank: int) -> dict[str, object]:
    """What ``peft.LoraConfig`` reads; alpha equals the rank, so that the product is taken as it is."""
    module = architecture.down_projection
    last = module.rsplit(".", 1)[-1]
    ours = {architecture.weight_name(layer) for layer in range(len(names))}
    # Engines know projections by their last name; GPT-2 has two of that name in a block.
    unique = not any(name.endswith(f".{last}.weight") and name not in ours for name in names)
    return {
        "bias": "none",
        "fan_in_fan_out": architecture.input_by_output,
        "inference_mode": True,
        "layers_pattern": architecture.layers,
        "layers_to_transform": layers,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": rank,
        "target_modules": [last if unique else module],
        "task_type": "CAUSAL_LM",
    }
