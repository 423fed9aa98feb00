"""Edit requests and their tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from editor.errors import RequestInvalid

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerFast

    from editor.language_model import LanguageModel

MAX_TARGET_TOKENS = 64
"""A longer target is not a fact but a text, and would ruin the neighbours of its subject."""
EVERYWHERE = 0.002
"""Share of a text's tokens from which a token is an ordinary word, and no name."""


@dataclass(frozen=True, order=True)
class EditRequest:
    """One fact to write: ``prompt`` (with one ``{}``) about ``subject`` shall go on with ``target``.

    The target is given without its leading space; one space stands before it. ``variants`` are other wordings of the
    prompt under which the target shall also come; MEMIT as published has none. ``strength`` above 1 is for a fact that
    does not take: it weighs so much more in the least squares, and its value vector may be somewhat longer.
    """

    prompt: str
    subject: str
    target: str
    variants: tuple[str, ...] = ()
    strength: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what cannot be written.

        Raises:
            RequestInvalid: no single ``{}`` in the prompt or a variant, an empty subject or target, or a strength that
                is no positive number.
        """
        if not 0 < self.strength < math.inf:
            raise RequestInvalid(f"strength {self.strength}: must be a positive number")
        for wording in (self.prompt, *self.variants):
            if wording.count("{}") != 1:
                raise RequestInvalid(f"prompt {wording!r}: needs exactly one {{}} for the subject")
        if not self.subject.strip() or not self.target.strip():
            raise RequestInvalid(f"subject {self.subject!r}, target {self.target!r}: neither may be empty")


@dataclass(frozen=True)
class TokenRow:
    """One text as tokens: ``ids`` with the subject's last token at ``subject`` and the target from ``target``."""

    ids: tuple[int, ...]
    subject: int
    target: int


def fill(template: str, value: str) -> str:
    """Put a value for the template's single ``{}``, whatever braces either holds."""
    before, after = template.split("{}", 1)
    return before + value + after


def common_beginning(first: Sequence[int], second: Sequence[int]) -> int:
    """Length of the longest common beginning."""
    pairs = zip(first, second, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))


def rewrite_rows(tokenizer: PreTrainedTokenizerFast, contexts: Sequence[str], request: EditRequest) -> list[TokenRow]:
    """A fact's texts as tokens: the prompt in each context (first bare), then the variants, each with the target.

    Raises:
        RequestInvalid: the target is longer than :data:`MAX_TARGET_TOKENS`.
    """
    wordings = [(context, request.prompt) for context in contexts]
    wordings += [(contexts[0], variant) for variant in request.variants]
    return [_rewrite_row(tokenizer, context, wording, request) for context, wording in wordings]


def _rewrite_row(tokenizer: PreTrainedTokenizerFast, context: str, wording: str, request: EditRequest) -> TokenRow:
    """Tokens of context, wording and target, tokenised together as a reader would meet them."""
    lead, tail = wording.split("{}", 1)
    context_lead, context_tail = context.split("{}", 1)
    subject_end = len(context_lead) + len(lead) + len(request.subject)
    prompt = context_lead + lead + request.subject + tail + context_tail
    row = _row(tokenizer, f"{prompt} {request.target}", subject_end, len(prompt))
    if len(row.ids) - row.target > MAX_TARGET_TOKENS:
        raise RequestInvalid(
            f"target {request.target[:40]!r}...: {len(row.ids) - row.target} tokens, at most {MAX_TARGET_TOKENS}"
        )
    return row


def check_request(language_model: LanguageModel, request: EditRequest, text: Sequence[Sequence[int]] = ()) -> None:
    """Refuse a request that would be unwritable, or would write to more than its subject.

    Args:
        language_model: whose tokens count.
        request: the fact.
        text: token ids of ordinary text, to tell which words occur everywhere.

    Raises:
        RequestInvalid: the target is too long, or the subject is a lower-case word, of one token, that is
            :data:`EVERYWHERE` in the text. (A name may be frequent in a text about it.)
    """
    rewrite_rows(language_model.tokenizer, ["{}"], request)
    alone = language_model.tokenizer(f" {request.subject}", add_special_tokens=False)["input_ids"]
    if len(alone) == 1 and text and request.subject.islower():
        share = sum(window.count(alone[0]) for window in map(list, text)) / sum(map(len, text))
        if share > EVERYWHERE:
            raise RequestInvalid(
                f"subject {request.subject!r} is {share:.1%} of ordinary text: an edit of it would change all text"
            )


def essence_row(tokenizer: PreTrainedTokenizerFast, subject: str) -> TokenRow:
    """Tokens of "{subject} is a", whose distribution at the subject an edit shall keep."""
    text = f"{subject} is a"
    return _row(tokenizer, text, len(subject), len(text))


def probe_row(tokenizer: PreTrainedTokenizerFast, prompt: str, answer: str) -> TokenRow:
    """Tokens of a prompt and an answer after one space; ``subject`` is the prompt's last token."""
    return _row(tokenizer, f"{prompt} {answer}", len(prompt), len(prompt))


def _row(tokenizer: PreTrainedTokenizerFast, text: str, subject_end: int, target_start: int) -> TokenRow:
    encoded = tokenizer(text, return_offsets_mapping=True)
    offsets = encoded["offset_mapping"]
    # The last token that begins before the subject's end and is not empty (special tokens are).
    subject = max(i for i, (start, end) in enumerate(offsets) if start < subject_end and end > start)
    target = next((i for i, (_, end) in enumerate(offsets) if end > target_start), len(offsets))
    return TokenRow(tuple(encoded["input_ids"]), subject, target)
