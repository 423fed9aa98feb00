"""A loaded causal language model with what the editor needs beside it."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from editor.architectures import Architecture, architecture_of
from editor.errors import ModelUnavailable

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel, PreTrainedTokenizerFast

READ_BLOCK = 1 << 20


@dataclass(frozen=True)
class LanguageModel:
    """A model in evaluation mode with frozen weights, its tokenizer, its adapter and the digest of its files."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    architecture: Architecture
    digest: str

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = self.model.device
        return device

    @property
    def depth(self) -> int:
        """Number of decoder blocks."""
        return len(self.architecture.blocks_of(self.model))

    def head(self, hidden: Tensor) -> Tensor:
        """Logits of final hidden states, bounded where the architecture bounds them (Gemma 2)."""
        logits: Tensor = self.model.get_output_embeddings()(hidden)
        bound = getattr(self.model.config, "final_logit_softcapping", None)
        return logits if bound is None else bound * (logits / bound).tanh()


def load_language_model(
    directory: Path, *, device: str = "auto", dtype: str = "auto", digest: str | None = None
) -> LanguageModel:
    """Load a local safetensors checkpoint.

    Args:
        directory: a directory that plain ``transformers`` loads.
        device: a torch device, or ``auto`` (CUDA where there is one).
        dtype: a torch dtype name, or ``auto`` (as saved).
        digest: the checkpoint's digest where the caller has verified it, else it is computed.

    Raises:
        ModelUnavailable: missing, incomplete or unreadable.
        UnsupportedModel: the architecture has no adapter.
    """
    if not (directory / "config.json").is_file():
        raise ModelUnavailable(f"no model in {directory}: it has no config.json")
    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    try:
        with quiet_transformers():
            # trust_remote_code stays False and only safetensors are read: a checkpoint is data, never code.
            model = AutoModelForCausalLM.from_pretrained(
                directory, dtype=dtype, use_safetensors=True, local_files_only=True
            )
            tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        model.to(chosen)
    except Exception as error:  # transformers raises many kinds for damaged files
        raise ModelUnavailable(f"cannot load the model in {directory}: {first_line(error)}") from error
    model.eval()
    model.requires_grad_(requires_grad=False)
    # It would warn of a text longer than the model's context; we look at lengths ourselves, and say which text it is.
    tokenizer.model_max_length = sys.maxsize
    return LanguageModel(model, tokenizer, architecture_of(model), digest or files_digest(directory))


def files_digest(directory: Path) -> str:
    """SHA-256 over names and contents of the weights, the configuration and the tokenizer."""
    total = hashlib.sha256()
    for file in sorted(directory.iterdir()):
        if file.suffix == ".safetensors" or file.name in {"config.json", "tokenizer.json"}:
            total.update(file.name.encode())
            with file.open("rb") as stream:
                total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


class quiet_transformers:  # noqa: N801 - reads as a statement in "with"
    """Keep transformers' own progress bars and warnings off the terminal for the time of a block."""

    def __enter__(self) -> None:
        """Remember and lower the verbosity."""
        self._verbosity = transformers_logging.get_verbosity()
        self._bars = transformers_logging.is_progress_bar_enabled()
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()

    def __exit__(self, *exception: Any) -> None:
        """Put the verbosity back."""
        transformers_logging.set_verbosity(self._verbosity)
        if self._bars:
            transformers_logging.enable_progress_bar()
