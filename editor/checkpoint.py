"""Checkpoints on disk: a base in safetensors shards, and a version that differs from it in a few tensors."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import safetensors
import torch
from safetensors.torch import save_file

from editor.errors import ModelUnavailable, NumericalFailure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from torch import Tensor

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


def write_version(
    base: Path,
    target: Path,
    updates: Mapping[str, Tensor],
    link: Callable[[Path, Path], None],
    skip: Iterable[str] = (),
) -> set[str]:
    """Write base plus updates into an empty directory; shards without an updated tensor are linked.

    Args:
        base: the base checkpoint.
        target: the directory to fill.
        updates: float32 updates by parameter name; the sum is rounded once to the saved dtype.
        link: makes the second path the same file as the first (a hard link, or a copy).
        skip: names in ``base`` that are not part of the checkpoint.

    Returns:
        Names of the files that were linked, and so are known to equal the base's.

    Raises:
        ModelUnavailable: the base lacks an updated tensor.
        NumericalFailure: an updated tensor is not finite.
    """
    shard_of = shards(base)
    unknown = sorted(set(updates) - set(shard_of))
    if unknown:
        raise ModelUnavailable(f"{base} has no tensor {unknown[0]}: prepare the base again")
    changed = {shard_of[name] for name in updates}
    linked: set[str] = set()
    for file in sorted(base.iterdir()):
        if file.name in skip or file.name in changed or not file.is_file():
            continue
        link(file, target / file.name)
        linked.add(file.name)
    for shard in sorted(changed):
        _write_shard(base / shard, target / shard, updates)
    return linked


def shards(base: Path) -> dict[str, str]:
    """Shard file by parameter name."""
    if (base / INDEX).is_file():
        weight_map: dict[str, str] = json.loads((base / INDEX).read_text("utf-8"))["weight_map"]
        return weight_map
    with safetensors.safe_open(base / SINGLE, framework="pt") as stored:
        return dict.fromkeys(stored.keys(), SINGLE)


def _write_shard(source: Path, target: Path, updates: Mapping[str, Tensor]) -> None:
    tensors: dict[str, Tensor] = {}
    with safetensors.safe_open(source, framework="pt") as stored:
        metadata = stored.metadata()
        for name in stored.keys():  # noqa: SIM118 - not a dict
            tensor = stored.get_tensor(name)
            if name in updates:
                tensor = (tensor.float() + updates[name]).to(tensor.dtype).contiguous()
                if not bool(torch.isfinite(tensor).all()):
                    raise NumericalFailure(f"{name} is not finite after the update")
            tensors[name] = tensor
    save_file(tensors, target, metadata=metadata)
