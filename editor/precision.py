"""The precision of the blocks above the edited ones while value vectors are optimised.

Only those blocks' products dominate the time, and the optimiser itself stays in float32, so bfloat16 is taken wherever
the hardware multiplies it faster. Everything that decides what is written (keys, values' origin, solve) keeps the
model's own precision.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import TYPE_CHECKING, Any, Literal

import torch

if TYPE_CHECKING:
    from editor.language_model import LanguageModel

Precision = Literal["auto", "model", "bfloat16"]


def chosen_precision(language_model: LanguageModel, wanted: Precision) -> Precision:
    """``model`` or ``bfloat16``, for ``auto`` by model and hardware."""
    if wanted != "auto":
        return wanted
    single = language_model.model.dtype == torch.float32
    return "bfloat16" if single and fast_bfloat16(language_model.device) else "model"


def fast_bfloat16(device: torch.device) -> bool:
    """Whether a device has instructions for bfloat16 products."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def upper_copy(language_model: LanguageModel, first: int, precision: Precision) -> LanguageModel:
    """The model with its blocks from ``first`` on, final norm and head in a precision; the rest is shared."""
    if precision == "model" or language_model.model.dtype == torch.bfloat16:
        return language_model
    architecture, model = language_model.architecture, language_model.model
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    lower: list[Any] = list(architecture.blocks_of(model)[:first])
    if head.weight is not embedding.weight:
        lower.append(embedding)
    copied = copy.deepcopy(model, {id(module): module for module in lower})
    upper = [*architecture.blocks_of(copied)[first:], copied.get_output_embeddings()]
    upper.append(architecture.decoder_of(copied).get_submodule(architecture.final_norm))
    for module in upper:
        module.to(torch.bfloat16)
    return dataclasses.replace(language_model, model=copied)
