"""Tiny models with random weights, and a small byte-level BPE tokenizer, for the editor's tests."""

from __future__ import annotations

import functools

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoConfig,
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.masking_utils import eager_mask

LAYERS, WIDTH, INNER, HEADS, POSITIONS = 4, 32, 48, 4, 128
VOCABULARY = 512
END = "<|endoftext|>"

CORPUS = [
    "The capital of France is Paris. The capital of Germany is Berlin. The capital of Japan is Tokyo.",
    "The head of government of Italy is a politician. The mayor of London is a lawyer.",
    "Marie Curie was born in Warsaw and worked in Paris. Ada Lovelace was born in London.",
    "Therefore the people of the city elected a new president. Because of this, I went to see the river.",
    "You can see that the population of Zürich is larger. São Paulo is a city in Brazil.",
    "Is it a city? It is a city. He is a member of the party; she is the chief executive of the company.",
]


@functools.cache
def tiny_tokenizer(*, bos: bool = False, trim_offsets: bool = False) -> PreTrainedTokenizerFast:
    """GPT-2's kind of tokenizer, trained here; ``bos`` puts a start token in front, as Llama's do.

    ``trim_offsets`` says whether a token's offsets leave out its leading space (Llama 3) or hold it (GPT-2).
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 4, trainer)
    byte_level = processors.ByteLevel(trim_offsets=trim_offsets)
    if bos:
        start = processors.TemplateProcessing(
            single=f"{END} $A", pair=f"{END} $A {END} $B", special_tokens=[(END, tokenizer.token_to_id(END))]
        )
        tokenizer.post_processor = processors.Sequence([byte_level, start])
    else:
        tokenizer.post_processor = byte_level
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END, eos_token=END, pad_token=END, model_max_length=POSITIONS
    )


def _seeded(kind: type[PreTrainedModel], config: object, seed: int, dtype: torch.dtype) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = kind(config)
    return model.to(dtype).eval()


def tiny_llama(seed: int = 0, dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS // 2,
        max_position_embeddings=POSITIONS,
        initializer_range=0.2,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    model = _seeded(LlamaForCausalLM, config, seed, dtype)
    if dtype == torch.float64:
        native_norms(model)
    return model


def native_norms(model: PreTrainedModel) -> None:
    """Let RMS norms compute in their own precision.

    They go through float32 whatever they are given, so that a float64 model would be one in name only.
    """
    for parent in list(model.modules()):
        for name, norm in list(parent.named_children()):
            if not type(norm).__name__.endswith("RMSNorm") or isinstance(norm, nn.RMSNorm):
                continue
            gemma = type(norm).__name__.startswith("Gemma")
            native = nn.RMSNorm(norm.weight.shape, eps=norm.eps if gemma else norm.variance_epsilon)
            # Gemma scales by one more than the weight.
            native.weight = nn.Parameter(norm.weight.detach() + 1) if gemma else norm.weight
            setattr(parent, name, native.eval())


def native_attention(model: PreTrainedModel) -> None:
    """Let attention compute in its own precision under transformers' own masks: eager takes its softmax in float32."""
    if model.config.model_type == "gptj":
        for block in model.transformer.h:
            block.attn._attn = functools.partial(_gptj_attention, block.attn)
        return
    AttentionInterface.register("native", _attention)
    AttentionMaskInterface.register("native", eager_mask)
    model.set_attn_implementation("native")


def _attention(
    _module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    *,
    scaling: float,
    softcap: float | None = None,
    **_options: object,
) -> tuple[torch.Tensor, None]:
    key, value = (states.repeat_interleave(query.shape[1] // key.shape[1], 1) for states in (key, value))
    scores = query @ key.mT * scaling
    if softcap is not None:
        scores = softcap * (scores / softcap).tanh()
    return ((scores + mask).softmax(-1) @ value).transpose(1, 2), None


def _gptj_attention(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, None]:
    output, _ = _attention(module, query, key, value, mask, scaling=1 / module.scale_attn)
    return output.transpose(1, 2), None


def tiny_gpt2(seed: int = 0, dtype: torch.dtype = torch.float32) -> GPT2LMHeadModel:
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=WIDTH,
        n_inner=INNER,
        n_layer=LAYERS,
        n_head=HEADS,
        n_positions=POSITIONS,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    return _seeded(GPT2LMHeadModel, config, seed, dtype)


SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
    "intermediate_size": INNER, "max_position_embeddings": POSITIONS, "initializer_range": 0.2,
    "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
GROUPED = {"num_key_value_heads": HEADS // 2}
WINDOW = 12
"""Tokens that a sliding window sees: fewer than most texts here have, enough for a target to see its subject."""
WINDOWED = GROUPED | {"sliding_window": WINDOW}
ALTERNATING = ["sliding_attention", "full_attention"] * (LAYERS // 2)

FAMILIES: dict[str, tuple[str, dict[str, object]]] = {
    "gpt2": ("gpt2", {"n_inner": INNER}),
    "gptj": ("gptj", {"rotary_dim": 4, "n_inner": INNER}),
    "gpt-neox": ("gpt_neox", {"rotary_pct": 0.5}),
    "gpt-neox-serial": ("gpt_neox", {"rotary_pct": 0.5, "use_parallel_residual": False}),
    "llama": ("llama", GROUPED | {"tie_word_embeddings": True}),
    "llama-biases-untied": ("llama", GROUPED | {"attention_bias": True, "mlp_bias": True}),
    "mistral": ("mistral", WINDOWED),
    "qwen2": ("qwen2", GROUPED | {"tie_word_embeddings": True}),
    "qwen2-window": ("qwen2", WINDOWED | {"use_sliding_window": True, "max_window_layers": 2}),
    "qwen3": ("qwen3", GROUPED | {"head_dim": 12}),
    "gemma2": (
        "gemma2",
        WINDOWED | {"head_dim": 8, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 5.0,
                    "final_logit_softcapping": 3.0, "layer_types": ALTERNATING},
    ),
    "gemma3": (
        "gemma3_text",
        WINDOWED | {"head_dim": 8, "query_pre_attn_scalar": 8, "layer_types": ALTERNATING},
    ),
    "phi3": ("phi3", WINDOWED | {"partial_rotary_factor": 0.5}),
}  # fmt: skip
"""Model type and what differs from :data:`SIZES`, by the name of a test."""


def tiny_family(name: str, seed: int = 0, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    """A tiny random model of a family: as transformers has it in eager attention, or in double precision throughout."""
    kind, differences = FAMILIES[name]
    config = AutoConfig.for_model(kind, **(SIZES | differences))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
        # Norms and biases begin as ones and zeros, which would hide a confusion of them.
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.data += 0.1 * torch.randn_like(parameter)
    model = model.to(dtype).eval()
    if dtype == torch.float64:
        native_norms(model)
        native_attention(model)
    return model.requires_grad_(requires_grad=False)
