"""What is computed once per base and settings: context templates and covariance."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import safetensors
from safetensors.torch import save_file

from editor.contexts import context_templates
from editor.covariance import covariance
from editor.ordinary_text import TextSource, ordinary_text
from editor.progress import Progress, silent
from editor.solve import Factors

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from editor.language_model import LanguageModel
    from editor.settings import MemitSettings

SHAPING = ("layers", "contexts", "context_tokens", "covariance_tokens", "seed")
"""Settings that a preparation depends on."""

HELD_OUT_TOKENS = 2500


@dataclass(frozen=True)
class Preparation:
    """What is fixed per base and settings.

    Attributes:
        contexts: context templates, the first bare.
        covariance: ``E[k k^T]`` per edited layer, float64 ``[d_ff, d_ff]``.
        held_out: token ids of ordinary text of the same source that is not in the covariance.
        factors: where matrices that follow from the covariance are kept.
    """

    contexts: tuple[str, ...]
    covariance: dict[int, Tensor]
    held_out: tuple[tuple[int, ...], ...] = ()
    factors: Factors = field(default_factory=Factors)


def prepare(
    language_model: LanguageModel,
    settings: MemitSettings,
    text: TextSource,
    directory: Path,
    progress: Progress = silent,
) -> Preparation:
    """The preparation for a base, from ``directory`` or computed and kept there.

    Args:
        language_model: the unmodified base.
        settings: MEMIT settings.
        text: where the covariance's ordinary text comes from.
        directory: where preparations are kept, one file each, found by content.
        progress: may raise to interrupt.

    Raises:
        CovarianceTooSmall: the text is missing or too short.
        ModelUnavailable: the text's data set cannot be had.
    """
    key = _key(language_model.digest, settings, text)
    file = directory / f"{key}.safetensors"
    if not file.exists():
        contexts = context_templates(language_model, settings)
        wanted = settings.covariance_tokens + HELD_OUT_TOKENS
        used, held_out = _split(ordinary_text(language_model, text, wanted, settings.seed, progress))
        moments = covariance(language_model, used, settings.layers, progress)
        directory.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        save_file(
            {str(layer): moment for layer, moment in moments.items()},
            partial,
            metadata={"contexts": json.dumps(contexts), "held_out": json.dumps(held_out)},
        )
        partial.replace(file)
    with safetensors.safe_open(file, framework="pt") as stored:
        return Preparation(
            tuple(json.loads(stored.metadata()["contexts"])),
            {int(name): stored.get_tensor(name) for name in stored.keys()},  # noqa: SIM118 - not a dict
            tuple(tuple(window) for window in json.loads(stored.metadata()["held_out"])),
            Factors(directory, key),
        )


def _split(texts: list[list[int]]) -> tuple[list[list[int]], list[list[int]]]:
    """Texts for the covariance, and the last ones, together about :data:`HELD_OUT_TOKENS`, for probing."""
    held_out: list[list[int]] = []
    while len(texts) > 1 and sum(map(len, held_out)) < HELD_OUT_TOKENS:
        held_out.append(texts.pop())
    return texts, held_out


def _key(base_digest: str, settings: MemitSettings, text: TextSource) -> str:
    shaping = settings.model_dump(include=set(SHAPING))
    content = json.dumps([base_digest, shaping, text.model_dump(mode="json")], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()
