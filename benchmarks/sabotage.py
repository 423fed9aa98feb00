"""Ways to spoil a candidate that the gate has to notice.

Except for truncation and one of the tokenizers, the artifact is sealed again after it was spoilt and its digest is
recorded, as if the edit phase had made it so: manifests then find nothing, and only what is measured can tell.
"""

from __future__ import annotations

import json
import random
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import safetensors
import torch
from safetensors.torch import save_file

from daemon.runtime import BASE_VERSION
from store import link_or_copy
from store.ledger import get_version
from store.tables import LedgerEntry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from torch import Tensor

    from daemon.runtime import Runtime
    from store.tables import Version

MANIFEST = "MANIFEST.json"
Tensors = dict[str, "Tensor"]


def noise(strength: float, layers: Sequence[int] | None, seed: int) -> Callable[[Runtime, Version], None]:
    """Gaussian noise on the projections of some layers (or all), as a share of each matrix's standard deviation."""
    generator = torch.Generator().manual_seed(seed)

    def change(name: str, tensor: Tensor) -> Tensor | None:
        if tensor.ndim != 2 or (number := layer_of(name)) is None or (layers is not None and number not in layers):
            return None
        return tensor + strength * tensor.std() * torch.randn(tensor.shape, generator=generator)

    return lambda runtime, candidate: _reweigh(runtime, candidate, change)


def amplified(factor: float) -> Callable[[Runtime, Version], None]:
    """The whole update taken so many times."""

    def spoil(runtime: Runtime, candidate: Version) -> None:
        base = weights(runtime.artifacts.path(BASE_VERSION))

        def change(name: str, tensor: Tensor) -> Tensor | None:
            update = tensor - base[name]
            return base[name] + factor * update if bool(update.any()) else None

        _reweigh(runtime, candidate, change)

    return spoil


def scrambled(layer: int, projection: str, seed: int) -> Callable[[Runtime, Version], None]:
    """The rows of one matrix in another order."""
    generator = torch.Generator().manual_seed(seed)

    def change(name: str, tensor: Tensor) -> Tensor | None:
        if layer_of(name) != layer or f".{projection}." not in name:
            return None
        return tensor[torch.randperm(len(tensor), generator=generator)]

    return lambda runtime, candidate: _reweigh(runtime, candidate, change)


def exchanged(first: int, second: int) -> Callable[[Runtime, Version], None]:
    """Two blocks in each other's place."""

    def spoil(runtime: Runtime, candidate: Version) -> None:
        present = weights(runtime.artifacts.path(candidate.id))
        other = {first: second, second: first}

        def change(name: str, _tensor: Tensor) -> Tensor | None:
            number = layer_of(name)
            if number not in other:
                return None
            return present[name.replace(f".{number}.", f".{other[number]}.")].clone()

        _reweigh(runtime, candidate, change)

    return spoil


def layer_of(name: str) -> int | None:
    """Number of the block that a parameter belongs to."""
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def weights(directory: Path) -> Tensors:
    """All tensors of a checkpoint, in float32."""
    found: Tensors = {}
    for file in sorted(directory.glob("*.safetensors")):
        with safetensors.safe_open(file, framework="pt") as stored:
            found |= {name: stored.get_tensor(name).float() for name in stored.keys()}  # noqa: SIM118 - not a dict
    return found


def _reweigh(runtime: Runtime, candidate: Version, change: Callable[[str, Tensor], Tensor | None]) -> None:
    """Replace tensors; None leaves one as it is."""

    def spoil(directory: Path) -> None:
        for file in sorted(directory.glob("*.safetensors")):
            with safetensors.safe_open(file, framework="pt") as stored:
                metadata = stored.metadata()
                tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - not a dict
            changed = {name: new for name, old in tensors.items() if (new := change(name, old.float())) is not None}
            if changed:
                file.unlink()  # it may be the base's too
                new = {name: changed.get(name, old).to(old.dtype).contiguous() for name, old in tensors.items()}
                save_file(new, file, metadata=metadata)

    resealed(runtime, candidate, spoil)


def resealed(runtime: Runtime, candidate: Version, spoil: Callable[[Path], None]) -> None:
    """Spoil a candidate's files, and make manifest and record agree with them."""
    artifacts = runtime.artifacts
    extra = artifacts.manifest(candidate.id).extra
    with artifacts.stage(candidate.id) as staging:
        for file in artifacts.path(candidate.id).iterdir():
            if file.name != MANIFEST:
                link_or_copy(file, staging / file.name)
        spoil(staging)
        digest = artifacts.seal(staging, candidate.id, extra)
    with runtime.database.transaction() as session:
        get_version(session, candidate.id).digest = digest


def tokenizer(change: Callable[[dict[str, Any]], None]) -> Callable[[Runtime, Version], None]:
    """Another tokenizer in the artifact."""

    def spoil(directory: Path) -> None:
        file = directory / "tokenizer.json"
        content = json.loads(file.read_text("utf-8"))
        change(content)
        file.unlink()
        file.write_text(json.dumps(content, ensure_ascii=False), "utf-8")

    return lambda runtime, candidate: resealed(runtime, candidate, spoil)


def lower_case(content: dict[str, Any]) -> None:
    """Takes all text for lower case."""
    content["normalizer"] = {"type": "Lowercase"}


def shuffled_words(content: dict[str, Any]) -> None:
    """Every tenth token has another one's number."""
    vocabulary = content["model"]["vocab"]
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)[300::10]
    numbers = [vocabulary[token] for token in tokens]
    random.Random(0).shuffle(numbers)
    vocabulary |= dict(zip(tokens, numbers, strict=True))


def half_the_merges(content: dict[str, Any]) -> None:
    """Another segmentation of the same vocabulary."""
    merges = content["model"]["merges"]
    del merges[len(merges) // 2 :]


def token_in_front(content: dict[str, Any]) -> None:
    """Every text begins with an end of text, as another model's tokenizer might have it."""
    token = content["added_tokens"][0]
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": token["content"], "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {
            token["content"]: {"id": token["content"], "ids": [token["id"]], "tokens": [token["content"]]}
        },
    }


def without_tokenizer(runtime: Runtime, candidate: Version) -> None:
    """No tokenizer at all."""
    resealed(runtime, candidate, lambda directory: (directory / "tokenizer.json").unlink())


def truncated(pattern: str, keep: float) -> Callable[[Runtime, Version], None]:
    """The first file of a pattern loses its end after it was sealed; with 0 it is gone."""

    def spoil(runtime: Runtime, candidate: Version) -> None:
        file = min(runtime.artifacts.path(candidate.id).glob(pattern))
        content = file.read_bytes()
        file.unlink()  # it may be the base's too
        if keep:
            file.write_bytes(content[: int(keep * len(content))])

    return spoil


def truncated_and_sealed(runtime: Runtime, candidate: Version) -> None:
    """A shard that lost its end before it was sealed."""

    def spoil(directory: Path) -> None:
        file = min(directory.glob("*.safetensors"))
        content = file.read_bytes()
        file.unlink()
        file.write_bytes(content[: len(content) // 2])

    resealed(runtime, candidate, spoil)


@contextmanager
def forgotten(runtime: Runtime, candidate: Version, edits: Sequence[int]) -> Iterator[None]:
    """While the weights are solved the ledger lacks some edits, which it has again when they are measured."""
    with runtime.database.transaction() as session:
        entries = [session.get_one(LedgerEntry, (candidate.id, edit)) for edit in edits]
        rows = [entry.model_dump() for entry in entries]
        for entry in entries:
            session.delete(entry)
    yield
    with runtime.database.transaction() as session:
        session.add_all(LedgerEntry(**row) for row in rows)
