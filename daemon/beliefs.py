"""Beliefs: what a version holds for a fact, told from its own answers."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

from editor import Inquiry, is_answer, natural_stop, replies
from store.tables import Belief

if TYPE_CHECKING:
    from collections.abc import Sequence

    from daemon.config import DiffSection
    from daemon.questions import Question
    from daemon.runtime import Runtime
    from editor import LanguageModel, Progress, Reply
    from store.tables import Version


class Holding(StrEnum):
    """The four beliefs."""

    HOLDS = "holds"  # it gives the current value
    OUTDATED = "outdated"  # it gives the former value
    OTHER = "other"  # it gives a rival, or anything else with confidence
    UNKNOWN = "unknown"  # it has no definite answer


def measure_beliefs(runtime: Runtime, version: Version, questions: Sequence[Question]) -> list[Belief]:
    """What the version holds for each question, measured now, in the order of the questions."""
    if not questions:
        return []
    model = runtime.model(version)
    return beliefs(model, version.id, questions, runtime.settings.diff, runtime.progress)


def beliefs(
    model: LanguageModel, version_id: int, questions: Sequence[Question], settings: DiffSection, progress: Progress
) -> list[Belief]:
    """What a model holds for each question."""
    asked = replies(model, [inquiry_of(question) for question in questions], settings.answer_tokens, progress)
    return [
        _belief(version_id, question, reply, settings.confident)
        for question, reply in zip(questions, asked, strict=True)
    ]


def _candidates(question: Question) -> tuple[str, ...]:
    values = (question.expected, question.former)
    return tuple(dict.fromkeys((*(value for value in values if value is not None), *question.rivals)))


def inquiry_of(question: Question) -> Inquiry:
    """What a model is asked for."""
    return Inquiry(question.prompt, _candidates(question), (*question.aliases, *question.former_aliases))


def _belief(version_id: int, question: Question, reply: Reply, confident: float) -> Belief:
    scored = dict(zip(_candidates(question), (score.log_probability for score in reply.scores), strict=True))
    holding, answer = tell(question, reply, confident)
    return Belief(
        version_id=version_id, qid=question.qid, pid=question.pid, belief=holding.value,
        expected=question.expected, former=question.former, answer=answer,
        logprob_expected=scored.get(question.expected or ""), logprob_former=scored.get(question.former or ""),
        rivals={rival: scored[rival] for rival in question.rivals},
    )  # fmt: skip


def tell(question: Question, reply: Reply, confident: float) -> tuple[Holding, str]:
    """The belief, and the answer that it rests on.

    The greedy answer is compared with labels first, then with aliases: a name that begins another value's label must
    not stand for it.

    Args:
        question: as it was asked.
        reply: as the model took it.
        confident: mean probability per token from which any other answer counts as one.
    """
    known = [
        (Holding.HOLDS, [question.expected]),
        (Holding.OUTDATED, [question.former]),
        (Holding.HOLDS, question.aliases),
        (Holding.OUTDATED, question.former_aliases),
        (Holding.OTHER, question.rivals),
    ]
    for holding, names in known:
        for name in names:
            if name is not None and is_answer(reply.text, name):
                return holding, name
    first = natural_stop(reply.text)
    return (Holding.OTHER if first and reply.mean_probability >= confident else Holding.UNKNOWN), first
