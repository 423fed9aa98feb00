"""Probes: prompts with expected answers that are never used to compute an edit, and how a model does on them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, TypeVar

from editor import LanguageModel, fill, greedy_answers, natural_stop, scores

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from daemon.config import GateSection
    from editor import Progress
    from sources import Relation
    from store.tables import Edit


Thing = TypeVar("Thing")


class Kind(StrEnum):
    """What a probe looks at."""

    EFFICACY = "efficacy"  # the edit prompt of a new edit
    RETENTION = "retention"  # the edit prompt of an edit that the promoted version has too
    PARAPHRASE = "paraphrase"  # a held-out cloze of a live edit
    QUESTION = "question"  # a live edit asked as a question: its value against the former one
    REVERSAL = "reversal"  # the edit prompt of a retracted edit: what the base answers is expected again
    NEIGHBOURHOOD = "neighbourhood"  # same relation, other subject: its own value against the one written
    SAME_SUBJECT = "same_subject"  # another fact about an edited subject that the base knows
    CONTROL = "control"  # a fact about a subject without an edit that the base knows
    TASK = "task"  # a prompt of the operator's own


OF_EDITS = (Kind.EFFICACY, Kind.RETENTION)
STABLE = (Kind.NEIGHBOURHOOD, Kind.SAME_SUBJECT, Kind.CONTROL, Kind.TASK)
"""What an edit must leave as it is: asked of the base and the promoted version too."""


@dataclass(frozen=True)
class Probe:
    """One prompt and its expected answer.

    With a ``rival`` it is passed where the expected answer is likelier than the rival, else where greedy decoding
    gives it. ``known_by`` are the prompts that the base must pass for the probe to be chosen. They are other wordings
    than the one measured: chosen by the measured one, what the base got right by a hair's breadth could only fall, and
    any change at all would look like a loss (regression to the mean).
    """

    kind: Kind
    qid: str
    pid: str
    prompt: str
    expected: str
    rival: str | None = None
    known_by: tuple[str, ...] = ()

    @property
    def written(self) -> bool:
        """Whether the model's own words are compared, instead of the likelihood of an answer."""
        return self.kind is Kind.REVERSAL


@dataclass(frozen=True)
class Answers:
    """What one model did on probes.

    Attributes:
        passed: for each probe.
        texts: what it wrote, where it was asked to write, by the probe's position.
    """

    passed: list[bool]
    texts: dict[int, str]


def edit_probes(
    edits: Sequence[Edit], former: set[int], relation: Callable[[str], Relation], settings: GateSection
) -> list[Probe]:
    """Probes of live edits: the edit prompt itself, held-out clozes, questions.

    A model may answer a question with a sentence, a line break or a name, so a question compares the new value with the
    former one (for want of one, with another that was written in the relation) instead of asking for an exact answer.

    Args:
        edits: of the ledger.
        former: ids of those that the promoted version has.
        relation: the wordings of a property.
        settings: how many wordings are taken.
    """
    probes = []
    for edit in edits:
        words = relation(edit.pid)
        own = Kind.RETENTION if edit.id in former else Kind.EFFICACY
        clozes = shuffled(words.paraphrases, edit.qid)[: settings.paraphrases_per_fact]
        questions = shuffled(words.questions, edit.qid)[: settings.questions_per_fact]
        rival = edit.former if edit.former != edit.target else None
        rival = rival or _other_target(edit, edits)
        asked = [
            (own, edit.prompt, None),
            *((Kind.PARAPHRASE, cloze, None) for cloze in clozes),
            *((Kind.QUESTION, question, rival) for question in questions),
        ]
        probes += [
            Probe(kind, edit.qid, edit.pid, fill(template, edit.subject), edit.target, rival=against)
            for kind, template, against in asked
        ]
    return probes


def _other_target(edit: Edit, edits: Sequence[Edit]) -> str | None:
    others = {other.target for other in edits if other.pid == edit.pid} - {edit.target}
    return next(iter(shuffled(others, edit.qid)), None)


def shuffled(things: Iterable[Thing], salt: str, key: Callable[[Thing], str] = str) -> list[Thing]:
    """The same things in an order that looks random and is always the same."""
    return sorted(things, key=lambda thing: hashlib.sha256(f"{salt}\n{key(thing)}".encode()).digest())


def answer(model: LanguageModel, probes: Sequence[Probe], tokens: int, progress: Progress) -> Answers:
    """Whether the model passes each probe.

    Args:
        model: the version to ask.
        probes: of any kind.
        tokens: longest text it writes for a probe that compares its own words.
        progress: told about the work.
    """
    scored = [i for i, probe in enumerate(probes) if not probe.written]
    expected = dict(
        zip(scored, scores(model, [(probes[i].prompt, probes[i].expected) for i in scored], progress), strict=True)
    )
    with_rival = [i for i in scored if probes[i].rival is not None]
    rivals = scores(model, [(probes[i].prompt, probes[i].rival or "") for i in with_rival], progress)
    passed = {i: score.greedy for i, score in expected.items()}
    for i, rival in zip(with_rival, rivals, strict=True):
        passed[i] = expected[i].log_probability > rival.log_probability
    reversed_ = [i for i, probe in enumerate(probes) if probe.written]
    texts = own_words(model, [probes[i].prompt for i in reversed_], tokens, progress)
    for i, text in zip(reversed_, texts, strict=True):
        passed[i] = text == probes[i].expected
    return Answers([passed[i] for i in range(len(probes))], dict(zip(reversed_, texts, strict=True)))


def own_words(model: LanguageModel, prompts: Sequence[str], tokens: int, progress: Progress) -> list[str]:
    """The first answer that greedy decoding gives to each prompt."""
    return [natural_stop(text) for text in greedy_answers(model, prompts, tokens, progress)]


def explained(
    model: LanguageModel, probes: Sequence[Probe], answers: Answers, tokens: int, progress: Progress
) -> list[str]:
    """An answer for every probe: the model's own words where it failed, else what was expected.

    Where two answers were compared there is none.
    """
    silent = [
        i
        for i, (probe, ok) in enumerate(zip(probes, answers.passed, strict=True))
        if not ok and probe.rival is None and i not in answers.texts
    ]
    texts = greedy_answers(model, [probes[i].prompt for i in silent], tokens, progress)
    written = answers.texts | dict(zip(silent, texts, strict=True))
    return [
        written.get(i, probe.expected if ok else "")
        for i, (probe, ok) in enumerate(zip(probes, answers.passed, strict=True))
    ]
