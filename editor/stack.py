"""Run a contiguous range of decoder blocks on packed texts, from token ids or from cached hidden states.

A range is a shallow view of the model's own decoder with a shorter layer list, so norms, rotary embeddings and
projections are the architecture's own; only attention is told where one text ends and the next begins. Weights are
shared with the model: an edit shows at once.
"""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, DynamicCache

from editor.packing import Packing, attend, attention_dtype

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from transformers import PreTrainedModel

    from editor.architectures import Architecture

ATTENTION = "factsyncd_packed"
"""Name under which transformers finds the attention of packed texts."""


class KeyValues:
    """Keys and values of tokens that later tokens refer to, per block: ``[tokens, kv_heads, n]`` each."""

    def __init__(self) -> None:
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def append(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Add tokens behind those that are there."""
        if layer in self._layers:
            keys, values = (torch.cat(pair) for pair in zip(self._layers[layer], (keys, values), strict=True))
        self._layers[layer] = (keys, values)

    def forget(self, layers: Iterable[int]) -> None:
        """Free what some blocks hold."""
        for layer in layers:
            self._layers.pop(layer, None)

    def of(self, layer: int, packing: Packing) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of the segments' prefixes per group, ``[rows, kv_heads, P, n]`` each."""
        return [
            tuple(  # type: ignore[misc]
                states[group.prefix].transpose(1, 2).to(attention_dtype(states)).contiguous()
                for states in self._layers[layer]
            )
            for group in packing.groups
        ]


class Prefix:
    """The prefixes of one packing, laid out for attention once and used at every step.

    Args:
        store: keys and values that the segments' prefixes name.
        packing: the segments.
        first: the first block they are wanted for; ``last`` is one past the last.
    """

    def __init__(self, store: KeyValues, packing: Packing, first: int, last: int) -> None:
        wanted = any(group.prefix.shape[1] for group in packing.groups)
        self._layers = {layer: store.of(layer, packing) for layer in range(first, last)} if wanted else {}

    @property
    def nbytes(self) -> int:
        """Bytes that they take."""
        return sum(states.nbytes for groups in self._layers.values() for pair in groups for states in pair)

    def of(self, layer: int) -> list[tuple[Tensor, Tensor]] | None:
        """As :func:`editor.packing.attend` takes them; none where no segment has a prefix."""
        return self._layers.get(layer)


@dataclass
class _Run:
    """What attention has to know beside its inputs; one per stack, filled for the time of a call."""

    packing: Packing | None = None
    prefix: Prefix | None = None
    record: KeyValues | None = None

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        layer: int = module.layer_idx  # type: ignore[assignment]
        assert self.packing is not None
        if self.record is not None:
            real = slice(self.packing.tokens)
            self.record.append(layer, key[0, :, real].transpose(0, 1), value[0, :, real].transpose(0, 1))
        prefix = None if self.prefix is None else self.prefix.of(layer)
        return attend(self.packing, prefix, query, key, value, **options)


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, _mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Attention as transformers calls it; ``module`` is a view that knows its stack's run."""
    run: _Run = module.packed_run  # type: ignore[assignment]
    scaling = options.get("scaling") or query.shape[-1] ** -0.5
    window, softcap = options.get("sliding_window"), options.get("softcap")
    return run.attend(module, query, key, value, scaling=scaling, softcap=softcap, window=window), None


def _own_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, _mask: Tensor | None = None
) -> tuple[Tensor, None]:
    """Attention as GPT-J calls a method of its own: heads before tokens."""
    run: _Run = module.packed_run  # type: ignore[assignment]
    scaling = 1 / float(module.scale_attn)  # type: ignore[arg-type]
    return run.attend(module, query, key, value, scaling=scaling).transpose(1, 2), None


class _Passing(DynamicCache):  # type: ignore[misc]
    """A cache that keeps nothing: prefixes are held in the layout that attention wants."""

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        return key_states, value_states


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
        AttentionInterface.register(ATTENTION, _attention)
        decoder = architecture.decoder_of(model)
        blocks = list(architecture.blocks_of(model))
        config = _packed_config(decoder.config, first, last)
        self._run = _Run()
        view = _view(decoder)
        view.config = config
        view._modules[architecture.layers] = nn.ModuleList(
            _block_view(block, architecture, config, self._run) for block in blocks[first:last]
        )
        if last < len(blocks):
            view._modules[architecture.final_norm] = nn.Identity()
        if not from_tokens and architecture.position_embedding is not None:
            view._modules[architecture.position_embedding] = _NoPosition()
        self.first, self.last = first, last
        self._embed: nn.Module | None = model.get_input_embeddings() if from_tokens else None
        self._decoder = view

    def __call__(
        self, inputs: Tensor, packing: Packing, prefix: Prefix | None = None, record: KeyValues | None = None
    ) -> Tensor:
        """Hidden states ``[size, d]`` after the last block of the range.

        Args:
            inputs: token ids ``[size]`` or hidden states ``[size, d]``, as constructed.
            packing: where the texts stand.
            prefix: keys and values of the texts' earlier tokens.
            record: takes these tokens' keys and values of every block of the range.
        """
        hidden = inputs if self._embed is None else self._embed(inputs)
        self._run.packing, self._run.prefix, self._run.record = packing, prefix, record
        try:
            output = self._decoder(
                inputs_embeds=hidden.unsqueeze(0),
                position_ids=packing.positions,
                past_key_values=_Passing(),
                use_cache=True,
            )
        finally:
            self._run.packing = self._run.prefix = self._run.record = None
        last: Tensor = output.last_hidden_state
        return last[0]


def token_ids(texts: Sequence[Sequence[int]], packing: Packing, device: torch.device) -> Tensor:
    """Token ids of packed texts, ``[size]``; filler is id 0."""
    flat = [token for text in texts for token in text]
    return torch.tensor([*flat, *[0] * (packing.size - len(flat))], device=device)


def _packed_config(config: Any, first: int, last: int) -> Any:
    """The decoder's configuration for a range of its blocks with attention to packed texts."""
    config = copy.copy(config)
    config._attn_implementation = ATTENTION
    # Decoders look their blocks' kinds up by place in the list.
    if getattr(config, "layer_types", None) is not None:
        config.layer_types = config.layer_types[first:last]
    return config


def _view(module: nn.Module) -> Any:
    """A shallow copy whose submodules can be exchanged; parameters are shared."""
    view = copy.copy(module)
    view._modules = dict(module._modules)
    return view


def _block_view(block: nn.Module, architecture: Architecture, config: Any, run: _Run) -> nn.Module:
    view: nn.Module = _view(block)
    attention = _view(block.get_submodule(architecture.attention))
    attention.packed_run = run
    attention.config = config
    if architecture.attention_method is not None:
        setattr(attention, architecture.attention_method, functools.partial(_own_attention, attention))
    view._modules[architecture.attention] = attention
    return view
