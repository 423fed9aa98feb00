"""Covariance of keys over ordinary text: what an update must leave alone.

``C = E[k k^T]`` with k the input of a block's down projection (Meng et al. 2022, equation 15). All edited blocks
are measured in one pass that stops at the last of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from editor.errors import CovarianceTooSmall
from editor.packing import Packing, Segment
from editor.progress import Progress, silent
from editor.stack import Stack, token_ids

if TYPE_CHECKING:
    from collections.abc import Sequence

    from editor.language_model import LanguageModel

TOKENS_PER_BATCH = 4096


class KeyRecorder:
    """Records what enters down projections while it is open: ``recorded[layer]`` is ``[size, d_ff]``, packed texts."""

    def __init__(self, language_model: LanguageModel, layers: Sequence[int]) -> None:
        self.recorded: dict[int, Tensor] = {}
        self._modules = {
            layer: language_model.architecture.down_projection_of(language_model.model, layer) for layer in layers
        }

    def __enter__(self) -> KeyRecorder:
        """Attach the hooks."""
        self._handles = [module.register_forward_pre_hook(self._hook(layer)) for layer, module in self._modules.items()]
        return self

    def __exit__(self, *exception: object) -> None:
        """Detach the hooks."""
        for handle in self._handles:
            handle.remove()

    def _hook(self, layer: int):  # type: ignore[no-untyped-def]
        def record(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self.recorded[layer] = inputs[0].detach()[0]

        return record


@torch.no_grad()
def covariance(
    language_model: LanguageModel,
    texts: Sequence[Sequence[int]],
    layers: Sequence[int],
    progress: Progress = silent,
) -> dict[int, Tensor]:
    """``E[k k^T]`` per layer, float64 ``[d_ff, d_ff]`` on the CPU.

    Args:
        language_model: the unmodified base.
        texts: token ids of ordinary text.
        layers: edited blocks, ascending.
        progress: told the tokens done; may raise to interrupt.

    Raises:
        CovarianceTooSmall: fewer tokens than a key has dimensions.
    """
    stack = Stack(language_model.model, language_model.architecture, 0, layers[-1] + 1, from_tokens=True)
    total = sum(len(text) for text in texts)
    sums: dict[int, Tensor] = {}
    done = 0
    for batch in _batches(texts):
        packing = Packing([Segment(len(text)) for text in batch], language_model.device)
        with KeyRecorder(language_model, layers) as recorder:
            stack(token_ids(batch, packing, language_model.device), packing)
        for layer, keys in recorder.recorded.items():
            real = keys[: packing.tokens].float()
            product = (real.T @ real).double().cpu()
            sums[layer] = sums[layer] + product if layer in sums else product
        done += packing.tokens
        progress("covariance", done, total)
    width = next(iter(sums.values())).shape[0] if sums else 0
    if total <= width or not sums:
        raise CovarianceTooSmall(
            f"covariance from {total} tokens for keys of {width} dimensions: give at least {4 * width} tokens"
        )
    return {layer: product / total for layer, product in sums.items()}


def _batches(texts: Sequence[Sequence[int]]) -> list[list[Sequence[int]]]:
    """Texts in batches of about :data:`TOKENS_PER_BATCH`, alike in length so that attention pads little."""
    batches: list[list[Sequence[int]]] = []
    tokens = 0
    for text in sorted((text for text in texts if text), key=len, reverse=True):
        tokens += len(text)
        if not batches or tokens > TOKENS_PER_BATCH:
            batches.append([])
            tokens = len(text)
        batches[-1].append(text)
    return batches
