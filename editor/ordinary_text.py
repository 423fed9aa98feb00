"""Ordinary text, as tokens: sampled from the model itself, read from a file, or from a Hugging Face data set."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TopKLogitsWarper,
)

from editor.errors import CovarianceTooSmall, ModelUnavailable
from editor.language_model import quiet_transformers
from editor.progress import Progress, silent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from editor.language_model import LanguageModel

WINDOW = 128
"""Tokens of one text that is read."""

SAMPLED_WINDOW = 64
"""Tokens that a model writes behind an opener; many short texts are sooner written than few long ones."""

SAMPLE_BATCH = 256

OPENERS = (
    "The history of", "In the early", "The city of", "He was born in", "She studied at", "According to", "The river",
    "The company was founded", "During the war", "A new study", "The president", "In mathematics,", "The album",
    "The film tells", "The team won", "Located in the north", "The species", "The government", "Scientists have",
    "The novel", "As a child,", "The main road", "In recent years", "The university", "Because of the", "The museum",
    "It is known for", "The language is", "Farmers in", "The church was", "The island", "At the age of", "Music",
    "The first", "Many people", "The bank", "The king", "Economists", "The railway", "In the summer of", "The word",
    "Her work", "The mountains", "Football", "The party", "Water", "The minister", "When the", "The hospital",
    "An important", "The actor", "Computers", "The treaty", "Most of the", "The capital", "Under the law,",
    "The painting", "His father", "Trade between", "The school", "Since then,", "The court", "The planet", "Bread",
)  # fmt: skip
"""Beginnings from which a model writes text of many kinds."""


class TextSource(BaseModel):
    """Where ordinary text comes from.

    Attributes:
        kind: ``generated`` by the model itself, a ``file``, or a Hugging Face ``dataset``.
        path: the file (UTF-8, optionally ``.gz``).
        dataset: the data set's name, and its ``configuration`` and text ``column``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["generated", "file", "dataset"] = "generated"
    path: Path | None = None
    dataset: str | None = None
    configuration: str | None = None
    column: str = "text"


def ordinary_text(
    language_model: LanguageModel, source: TextSource, tokens: int, seed: int, progress: Progress = silent
) -> list[list[int]]:
    """About ``tokens`` tokens of ordinary text from a source, in windows of at most :data:`WINDOW` or so.

    Raises:
        CovarianceTooSmall: the source's name is missing or its file cannot be read.
        ModelUnavailable: the data set cannot be had.
    """
    if source.kind == "file":
        if source.path is None:
            raise CovarianceTooSmall("ordinary text of kind file: set its path")
        return file_text(language_model, source.path, tokens)
    if source.kind == "dataset":
        if source.dataset is None:
            raise CovarianceTooSmall("ordinary text of kind dataset: set its dataset name")
        return dataset_text(language_model, source.dataset, source.configuration, source.column, tokens)
    return sampled_text(language_model, tokens, seed, progress)


def sampled_text(language_model: LanguageModel, tokens: int, seed: int, progress: Progress = silent) -> list[list[int]]:
    """Text the model writes itself (temperature 1) until there are ``tokens`` tokens.

    The same seed on the same machine gives the same text.
    """
    texts: list[list[int]] = []
    done = 0
    while done < tokens:
        # The openers come round again with another seed, so no text repeats.
        texts_before = len(texts)
        rows = min(SAMPLE_BATCH, -(-(tokens - done) // SAMPLED_WINDOW) + 1)
        openers = [OPENERS[(texts_before + i) % len(OPENERS)] for i in range(rows)]

        def each_token(written: int, before: int = done, rows: int = rows) -> None:
            progress("ordinary text", min(before + written * rows, tokens - 1), tokens)

        batch = sample(language_model, openers, SAMPLED_WINDOW, seed=seed + texts_before, each_token=each_token)
        for text in batch:
            texts.append(text)
            done += len(text)
        progress("ordinary text", min(done, tokens), tokens)
    return texts


class _EachToken(StoppingCriteria):  # type: ignore[misc]
    """Stops nothing; calls back after each token, so that the caller may interrupt."""

    def __init__(self, callback: Callable[[int], None]) -> None:
        self._callback = callback
        self._written = 0

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        self._written += 1
        self._callback(self._written)
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


class _InverseTransform(LogitsProcessor):  # type: ignore[misc]
    """Draws each next token from the full distribution, and leaves only that one to choose.

    One uniform number a row: drawing one for each word of the vocabulary takes a quarter of the sampling's time.
    """

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        cumulative = scores.float().softmax(-1).cumsum(-1)
        drawn = torch.rand(len(scores), 1, device=scores.device) * cumulative[:, -1:]
        token = torch.searchsorted(cumulative, drawn).clamp(max=scores.shape[-1] - 1)
        return torch.full_like(scores, -torch.inf).scatter(1, token, 0.0)


def sample(
    language_model: LanguageModel,
    openers: Sequence[str],
    new_tokens: int,
    seed: int,
    each_token: Callable[[int], None] = lambda _written: None,
    likeliest: int | None = None,
) -> list[list[int]]:
    """Continuations sampled at temperature 1, opener included, cut at the end-of-text token.

    With ``likeliest`` only that many next tokens are considered.
    """
    tokenizer = language_model.tokenizer
    rows = [tokenizer(opener)["input_ids"] for opener in openers]
    width = max(len(row) for row in rows)
    fill = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0
    ids = torch.tensor([[fill] * (width - len(row)) + row for row in rows], device=language_model.device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=ids.device)
    processors = LogitsProcessorList([_InverseTransform()])
    if likeliest is not None:
        processors.insert(0, TopKLogitsWarper(likeliest))
    devices = [ids.device] if ids.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), quiet_transformers(), torch.no_grad():
        torch.manual_seed(seed)
        out = language_model.model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=new_tokens, do_sample=False, pad_token_id=fill,
            logits_processor=processors,
            stopping_criteria=StoppingCriteriaList([_EachToken(each_token)]),
        )  # fmt: skip
    texts = []
    for row, start in zip(out.tolist(), (width - len(row) for row in rows), strict=True):
        text = row[start:]
        ends = [i for i, token in enumerate(text) if token == tokenizer.eos_token_id]
        texts.append(text[: ends[0]] if ends else text)
    return texts


def file_text(language_model: LanguageModel, path: Path, tokens: int | None = None) -> list[list[int]]:
    """The first ``tokens`` tokens of a UTF-8 text file (optionally ``.gz``), in windows of :data:`WINDOW`.

    Raises:
        CovarianceTooSmall: the file cannot be read or holds no text.
    """
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8") as stream:
            return _windows(language_model, stream, tokens)
    except (OSError, UnicodeDecodeError, EOFError) as error:
        raise CovarianceTooSmall(f"cannot read ordinary text from {path}: {error}") from error


def dataset_text(
    language_model: LanguageModel, name: str, configuration: str | None, column: str, tokens: int
) -> list[list[int]]:
    """The first ``tokens`` tokens of a Hugging Face data set's train split, streamed.

    Raises:
        ModelUnavailable: ``datasets`` is not installed or the data set cannot be had.
    """
    try:
        from datasets import load_dataset  # an optional extra
    except ImportError as error:
        raise ModelUnavailable("covariance from a data set: install factsyncd[datasets]") from error
    try:
        rows = load_dataset(name, configuration, split="train", streaming=True)
        return _windows(language_model, (row[column] for row in rows), tokens)
    except Exception as error:  # the hub client raises many kinds
        raise ModelUnavailable(f"cannot read data set {name}: {error}") from error


def _windows(language_model: LanguageModel, lines: Iterable[str], tokens: int | None) -> list[list[int]]:
    """Tokens of consecutive lines in windows of :data:`WINDOW`; the last may be shorter."""
    windows: list[list[int]] = []
    rest: list[int] = []
    for line in lines:
        rest += language_model.tokenizer(line, add_special_tokens=False)["input_ids"]
        while len(rest) >= WINDOW:
            windows.append(rest[:WINDOW])
            rest = rest[WINDOW:]
            if tokens is not None and len(windows) * WINDOW >= tokens:
                return windows
    if len(rest) > 1:
        windows.append(rest)
    return windows
