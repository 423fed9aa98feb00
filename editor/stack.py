"""Run a contiguous range of decoder blocks, from token ids or from cached hidden states.

A range is a shallow view of the model's own decoder with a shorter layer list, so attention masks, rotary
embeddings and kernels are the architecture's own. Weights are shared with the model: an edit shows at once.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from editor.architectures import Architecture


class RangeCache(DynamicCache):  # type: ignore[misc]
    """Keys and values of the blocks of one range; blocks keep their absolute indices."""

    def __init__(self, first: int) -> None:
        super().__init__()
        self.first = first

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store under the index relative to the range's first block."""
        updated: tuple[Tensor, Tensor] = super().update(
            key_states, value_states, layer_idx - self.first, *args, **kwargs
        )
        return updated

    def select(self, rows: Tensor | None = None) -> RangeCache:
        """A cache over the same tensors (or some of their rows) that can grow without touching this one."""
        other = RangeCache(self.first)
        for index, layer in enumerate(self.layers):
            keys, values = (layer.keys, layer.values) if rows is None else (layer.keys[rows], layer.values[rows])
            other.update(keys, values, self.first + index)
        return other


class _NoPosition(nn.Module):
    """Stands in for a position embedding where hidden states already carry it."""

    def forward(self, position_ids: Tensor) -> Tensor:
        return torch.zeros((), device=position_ids.device)


class Stack:
    """Blocks ``first`` to ``last - 1`` of a decoder.

    Args:
        model: the causal LM.
        architecture: its adapter.
        first: index of the first block.
        last: one past the last block; at the model's depth the final norm is applied, otherwise not.
        from_tokens: whether the input is token ids (then ``first`` must be 0) or hidden states.
    """

    def __init__(
        self, model: PreTrainedModel, architecture: Architecture, first: int, last: int, *, from_tokens: bool
    ) -> None:
        decoder = architecture.decoder_of(model)
        blocks = architecture.blocks_of(model)
        view = copy.copy(decoder)
        view._modules = dict(decoder._modules)
        view._modules[architecture.layers] = nn.ModuleList(list(blocks)[first:last])
        if last < len(blocks):
            view._modules[architecture.final_norm] = nn.Identity()
        if not from_tokens and architecture.position_embedding is not None:
            view._modules[architecture.position_embedding] = _NoPosition()
        self.first = first
        self._input = "input_ids" if from_tokens else "inputs_embeds"
        self._view = view

    def cache(self) -> RangeCache:
        """An empty cache for this range."""
        return RangeCache(self.first)

    def __call__(
        self,
        inputs: Tensor,
        mask: Tensor,
        positions: Tensor,
        cache: RangeCache | None = None,
    ) -> Tensor:
        """Hidden states ``[rows, tokens, d]`` after the last block of the range.

        Args:
            inputs: token ids ``[rows, tokens]`` or hidden states ``[rows, tokens, d]``, as constructed.
            mask: 1 for real tokens, ``[rows, cached + tokens]``.
            positions: position of each token in its text, ``[rows, tokens]``.
            cache: keys and values of earlier tokens; grows by these tokens.
        """
        output = self._view(
            **{self._input: inputs},
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        hidden: Tensor = output.last_hidden_state
        return hidden
