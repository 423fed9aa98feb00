"""Answers: what is asked of a model, what it says, and where an answer ends."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

ENDS_ANSWER = re.compile(r"[\n.,;:!?(\[\"“”]|<\|")
CONTINUES_LABEL = re.compile(r"^(\w|[-'’]\w|\s+[A-Z0-9])")
"""What may not follow a label: the word goes on, or another capitalised word makes it a longer name."""


@dataclass(frozen=True)
class Score:
    """How a model takes one answer to one prompt.

    Attributes:
        log_probability: of the whole answer, in nats.
        tokens: of the answer.
        greedy: whether greedy decoding gives exactly this answer and then stops naturally.
    """

    log_probability: float
    tokens: int
    greedy: bool

    @property
    def mean_probability(self) -> float:
        """Geometric mean probability per token, 0 to 1."""
        return math.exp(self.log_probability / self.tokens)


@dataclass(frozen=True)
class Inquiry:
    """A prompt, the answers to it that are scored, and further names that the model's own answer may be."""

    prompt: str
    candidates: tuple[str, ...] = ()
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reply:
    """How a model takes an inquiry.

    Attributes:
        scores: of the candidates.
        text: the greedy answer: the candidate that is one, else what was written.
        mean_probability: of the first answer in it: geometric mean per token, 0 where it is empty.
    """

    scores: tuple[Score, ...]
    text: str
    mean_probability: float


def is_answer(text: str, label: str) -> bool:
    """Whether generated text answers with a label and then stops naturally (it does not go on as a longer name)."""
    text = text.lstrip()
    return text.startswith(label) and CONTINUES_LABEL.match(text[len(label) :]) is None


def natural_stop(text: str) -> str:
    """Generated text up to where a first answer ends."""
    return ENDS_ANSWER.split(text.strip(), maxsplit=1)[0].strip()
