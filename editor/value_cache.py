"""Value vectors on disk, found by content.

A value vector depends on the base, the settings that shape it, the contexts and the request, and on nothing else;
its key is a digest over all of them. Vectors optimised together are written as one file, so that a killed run
leaves whole batches or nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import astuple
from typing import TYPE_CHECKING

import safetensors
from safetensors.torch import save_file

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from editor.requests import EditRequest
    from editor.settings import MemitSettings

NOT_IN_VALUES = {
    "layers", "covariance_weight", "covariance_tokens", "shrinkage", "passes", "reinforcements", "suffix_weight",
    "protect_weight", "strategy", "null_space", "ridge", "crowding",
}  # fmt: skip
"""Settings that do not change a value vector; of the layers only the last one does."""


def value_key(
    base_digest: str,
    settings: MemitSettings,
    contexts: Sequence[str],
    request: EditRequest,
    siblings: Sequence[EditRequest],
) -> str:
    """SHA-256 over everything a value vector depends on: ``siblings`` are all facts about its subject, in order."""
    shaping = settings.model_dump(exclude=NOT_IN_VALUES)
    facts = [astuple(request), *map(astuple, siblings)]
    content = [base_digest, settings.layers[-1], shaping, list(contexts), facts]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class ValueCache:
    """A directory of safetensors files, each holding the vectors of one batch under their keys."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._where: dict[str, Path] = {}
        directory.mkdir(parents=True, exist_ok=True)
        for file in sorted(directory.glob("*.safetensors")):
            self._index(file)

    def get(self, keys: Sequence[str]) -> dict[str, Tensor]:
        """The vectors known among ``keys``, float32."""
        found: dict[str, Tensor] = {}
        wanted: dict[Path, list[str]] = {}
        for key in keys:
            if key in self._where:
                wanted.setdefault(self._where[key], []).append(key)
        for file, names in wanted.items():
            with safetensors.safe_open(file, framework="pt") as stored:
                found |= {name: stored.get_tensor(name) for name in names}
        return found

    def put(self, vectors: Mapping[str, Tensor]) -> None:
        """Write the vectors of one batch, all or nothing."""
        if not vectors:
            return
        name = hashlib.sha256("".join(sorted(vectors)).encode()).hexdigest()
        target = self._directory / f"{name}.safetensors"
        partial = target.with_suffix(f".{os.getpid()}.partial")
        save_file({key: vector.float().cpu().contiguous() for key, vector in vectors.items()}, partial)
        with partial.open("rb") as stream:
            os.fsync(stream.fileno())
        partial.replace(target)
        self._where |= dict.fromkeys(vectors, target)

    def _index(self, file: Path) -> None:
        try:
            with safetensors.safe_open(file, framework="pt") as stored:
                self._where |= dict.fromkeys(stored.keys(), file)
        except safetensors.SafetensorError:
            file.unlink()  # a damaged cache file is only a lost computation
