"""Beliefs: what a version holds for a fact, told from its own answers."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from daemon.answers import answer_of
from editor import LanguageModel, Score, fill, greedy_answers, is_answer, natural_stop, scores
from store.tables import Belief, Change, Version

if TYPE_CHECKING:
    from collections.abc import Sequence

    from daemon.config import DiffSection
    from daemon.runtime import Runtime
    from editor import Progress
    from store.tables import Values


class Holding(StrEnum):
    """The four beliefs."""

    HOLDS = "holds"  # greedy decoding gives the current value and stops
    OUTDATED = "outdated"  # it gives the former value
    OTHER = "other"  # it names something else with confidence
    UNKNOWN = "unknown"  # it has no definite answer


@dataclass(frozen=True)
class Question:
    """A fact put to a model: the edit prompt about the subject, the expected and (if any) the former value."""

    qid: str
    pid: str
    prompt: str
    expected: str
    former: str | None


def question_of(runtime: Runtime, change: Change, left: Values) -> Question | None:
    """The question about what a slot has changed to; None where there is no one answer to it.

    Args:
        runtime: for the wordings.
        change: of the slot.
        left: what the version that is asked was left with, which the new values displace.
    """
    relation, longest_list = runtime.relation(change.pid), runtime.settings.edit.longest_list
    expected = answer_of(relation, change.new_values, longest_list)
    if expected is None:
        return None
    former = answer_of(relation, left, longest_list)
    return Question(change.qid, change.pid, fill(relation.prompt, change.subject_label), expected, former)


def measure_beliefs(runtime: Runtime, version: Version, questions: Sequence[Question]) -> list[Belief]:
    """What the version holds for each question, measured now, in the order of the questions."""
    if not questions:
        return []
    model, progress = runtime.model(version), runtime.progress
    expected = scores(model, [(q.prompt, q.expected) for q in questions], progress)
    with_former = [(i, q.former) for i, q in enumerate(questions) if q.former is not None]
    measured = scores(model, [(questions[i].prompt, label) for i, label in with_former], progress)
    former = {i: score for (i, _), score in zip(with_former, measured, strict=True)}
    # Who gives neither value is asked for an answer of its own.
    silent_ones = [
        i for i in range(len(questions)) if not expected[i].greedy and not (i in former and former[i].greedy)
    ]
    own = _own_answers(model, [questions[i].prompt for i in silent_ones], runtime.settings.diff, progress)
    answers = dict(zip(silent_ones, own, strict=True))
    beliefs = []
    for i, question in enumerate(questions):
        holding, answer = _tell(question, expected[i], former.get(i), answers.get(i))
        beliefs.append(
            Belief(
                version_id=version.id, qid=question.qid, pid=question.pid, belief=holding.value,
                expected=question.expected, answer=answer, logprob_expected=expected[i].log_probability,
                logprob_former=former[i].log_probability if i in former else None,
            )
        )  # fmt: skip
    return beliefs


def _own_answers(
    model: LanguageModel, prompts: Sequence[str], settings: DiffSection, progress: Progress
) -> list[tuple[Holding, str]]:
    """Greedy answers, as ``other`` or ``unknown`` by how sure the model is of them."""
    texts = greedy_answers(model, prompts, settings.answer_tokens, progress)
    firsts = [natural_stop(text) for text in texts]
    asked = [(prompt, first) for prompt, first in zip(prompts, firsts, strict=True) if first]
    scored = iter(scores(model, asked, progress))
    sure = [bool(first) and next(scored).mean_probability >= settings.confident for first in firsts]
    return [
        (Holding.OTHER if confident else Holding.UNKNOWN, text) for confident, text in zip(sure, texts, strict=True)
    ]


def _tell(
    question: Question, expected: Score, former: Score | None, own: tuple[Holding, str] | None
) -> tuple[Holding, str]:
    """The belief and the answer it rests on."""
    if expected.greedy:
        return Holding.HOLDS, question.expected
    if former is not None and former.greedy and question.former is not None:
        return Holding.OUTDATED, question.former
    assert own is not None
    # The same words may have been written with other tokens.
    if is_answer(own[1], question.expected):
        return Holding.HOLDS, own[1]
    if question.former is not None and is_answer(own[1], question.former):
        return Holding.OUTDATED, own[1]
    return own
