"""The adapter table: where each architecture keeps the parts MEMIT needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from editor.errors import UnsupportedModel

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Architecture:
    """Names of a decoder's parts, relative to the causal LM (``decoder``) or to the decoder or block.

    Attributes:
        decoder: the decoder inside the causal LM.
        layers: the list of blocks inside the decoder.
        final_norm: the norm after the last block.
        down_projection: the MLP's output projection inside a block: the matrix MEMIT edits.
        input_by_output: whether that matrix is stored as ``[d_ff, d]`` (Conv1D) instead of ``[d, d_ff]`` (Linear).
        attention: the attention module inside a block.
        position_embedding: an embedding the decoder adds to ``inputs_embeds`` by itself, if any.
        attention_method: the method by which its attention computes, where transformers' common interface is not used.
    """

    decoder: str
    layers: str
    final_norm: str
    down_projection: str
    attention: str
    input_by_output: bool = False
    position_embedding: str | None = None
    attention_method: str | None = None

    def decoder_of(self, model: PreTrainedModel) -> nn.Module:
        """The decoder module."""
        decoder: nn.Module = model.get_submodule(self.decoder)
        return decoder

    def blocks_of(self, model: PreTrainedModel) -> nn.ModuleList:
        """The list of decoder blocks."""
        return cast("nn.ModuleList", self.decoder_of(model).get_submodule(self.layers))

    def down_projection_of(self, model: PreTrainedModel, layer: int) -> nn.Module:
        """The edited module of one block."""
        return self.blocks_of(model)[layer].get_submodule(self.down_projection)

    def weight_name(self, layer: int) -> str:
        """The edited parameter's name in the checkpoint."""
        return f"{self.decoder}.{self.layers}.{layer}.{self.down_projection}.weight"

    def as_stored(self, delta: Tensor) -> Tensor:
        """Turn a ``[d, d_ff]`` update into the orientation in which the weight is stored."""
        return delta.T if self.input_by_output else delta


LLAMA = Architecture("model", "layers", "norm", "mlp.down_proj", "self_attn")

ARCHITECTURES = {
    "gemma2": LLAMA,
    "gemma3_text": LLAMA,
    "gpt2": Architecture(
        "transformer", "h", "ln_f", "mlp.c_proj", "attn", input_by_output=True, position_embedding="wpe"
    ),
    "gpt_neox": Architecture("gpt_neox", "layers", "final_layer_norm", "mlp.dense_4h_to_h", "attention"),
    "gptj": Architecture("transformer", "h", "ln_f", "mlp.fc_out", "attn", attention_method="_attn"),
    "llama": LLAMA,
    "mistral": LLAMA,
    "phi3": LLAMA,
    "qwen2": LLAMA,
    "qwen3": LLAMA,
}
"""By ``model_type``. Split or fused projections before the edited one make no difference, nor does a tied head."""


def architecture_of(model: PreTrainedModel) -> Architecture:
    """The adapter for a loaded model.

    Raises:
        UnsupportedModel: the model type is not in the table.
    """
    kind = model.config.model_type
    if kind not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise UnsupportedModel(f"model type {kind!r} cannot be edited: use one of {known}")
    return ARCHITECTURES[kind]
