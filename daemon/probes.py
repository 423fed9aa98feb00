"""Probe sets: prompts with expected answers that are never used to compute an edit."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, TypeVar

from sqlmodel import select

from daemon.protection import protects
from editor import LanguageModel, fill, greedy_answers, scores
from store.tables import Edit, Fact

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from sqlmodel import Session

    from daemon.config import GateSection
    from editor import Progress
    from sources import Relation


Thing = TypeVar("Thing")


class Kind(StrEnum):
    """What a probe looks at."""

    EFFICACY = "efficacy"  # the edit prompt of a live edit
    PARAPHRASE = "paraphrase"  # a held-out wording of a live edit
    NEIGHBOURHOOD = "neighbourhood"  # same relation, other subject: its own value against the one written
    CONTROL = "control"  # an unedited fact that the base knows


@dataclass(frozen=True)
class Probe:
    """One prompt and its expected answer.

    With a ``rival`` it is passed where the expected answer is likelier than the rival, else where greedy decoding
    gives it. ``known_by`` are the prompts that the base must pass for the probe to be chosen. For a control they are
    other wordings than the one measured: chosen by the measured one, what the base got right by a hair's breadth
    could only fall, and any change at all would look like a loss (regression to the mean).
    """

    kind: Kind
    qid: str
    pid: str
    prompt: str
    expected: str
    rival: str | None = None
    known_by: tuple[str, ...] = ()


@dataclass(frozen=True)
class Result:
    """A probe, whether it was passed, and what the model answered (empty where it was not asked to write)."""

    probe: Probe
    correct: bool
    answer: str


def edit_probes(edits: Sequence[Edit], relation: Callable[[str], Relation], settings: GateSection) -> list[Probe]:
    """Efficacy and paraphrase probes of live edits."""
    probes = []
    for edit in edits:
        wordings = _shuffled(relation(edit.pid).paraphrases, edit.qid)[: settings.paraphrases_per_fact]
        for kind, template in (
            (Kind.EFFICACY, edit.prompt),
            *((Kind.PARAPHRASE, wording) for wording in wordings),
        ):
            probes.append(Probe(kind, edit.qid, edit.pid, fill(template, edit.subject), edit.target))
    return probes


def stable_probes(
    session: Session, edits: Sequence[Edit], relations: dict[str, Relation], settings: GateSection
) -> list[Probe]:
    """Neighbourhood and control probes to choose from: unedited facts that do not protect, in a fixed order."""
    edited = {(edit.qid, edit.pid) for edit in edits}
    subjects = {edit.qid for edit in edits}
    facts = [
        fact for fact in session.exec(select(Fact))
        if fact.pid in relations and len(fact.values) == 1
        and (fact.qid, fact.pid) not in edited and not protects(fact.qid)
    ]  # fmt: skip
    facts = _shuffled(facts, "stable", key=lambda fact: f"{fact.qid} {fact.pid}")
    by_property: dict[str, list[Fact]] = {}
    for fact in facts:
        by_property.setdefault(fact.pid, []).append(fact)
    return [
        *_neighbours(edits, by_property, relations, settings),
        *(
            Probe(
                Kind.CONTROL, fact.qid, fact.pid, _ask(relations, fact), fact.values[0]["label"],
                known_by=tuple(fill(wording, fact.subject_label) for wording in relations[fact.pid].paraphrases[:2]),
            )
            for fact in facts
            if fact.qid not in subjects
        ),
    ]  # fmt: skip


def _neighbours(
    edits: Sequence[Edit],
    facts: dict[str, list[Fact]],
    relations: dict[str, Relation],
    settings: GateSection,
) -> list[Probe]:
    """For each edit a few other subjects of its relation, whose value must stay likelier than the one written."""
    subjects = {edit.qid for edit in edits}
    # A small ledger has more neighbours per edit, or there would be too few to decide.
    each = max(settings.neighbours_per_fact, -(-2 * settings.minimum_probes // max(1, len(edits))))
    probes = []
    for edit in edits:
        others = [
            fact for fact in facts.get(edit.pid, [])
            if fact.qid not in subjects and fact.values[0]["label"] != edit.target
        ]  # fmt: skip
        near = _shuffled(others, edit.qid, key=lambda fact: fact.qid)[:each]
        probes += [
            Probe(
                Kind.NEIGHBOURHOOD, fact.qid, fact.pid, _ask(relations, fact),
                fact.values[0]["label"], rival=edit.target, known_by=(_ask(relations, fact),),
            )
            for fact in near
        ]  # fmt: skip
    return _shuffled(probes, "neighbours", key=lambda probe: f"{probe.qid} {probe.pid} {probe.rival}")


def _ask(relations: dict[str, Relation], fact: Fact) -> str:
    return fill(relations[fact.pid].prompt, fact.subject_label)


def _shuffled(things: Iterable[Thing], salt: str, key: Callable[[Thing], str] = str) -> list[Thing]:
    """The same things in an order that looks random and is always the same."""
    return sorted(things, key=lambda thing: hashlib.sha256(f"{salt}\n{key(thing)}".encode()).digest())


def answer(model: LanguageModel, probes: Sequence[Probe], progress: Progress) -> list[bool]:
    """Whether the model passes each probe."""
    expected = scores(model, [(probe.prompt, probe.expected) for probe in probes], progress)
    with_rival = [i for i, probe in enumerate(probes) if probe.rival is not None]
    rivals = scores(model, [(probes[i].prompt, probes[i].rival or "") for i in with_rival], progress)
    passed = [score.greedy for score in expected]
    for i, rival in zip(with_rival, rivals, strict=True):
        passed[i] = expected[i].log_probability > rival.log_probability
    return passed


def explain(
    model: LanguageModel, probes: Sequence[Probe], passed: Sequence[bool], tokens: int, progress: Progress
) -> list[Result]:
    """Results with the model's own words for every probe it failed."""
    failed = [i for i, (probe, ok) in enumerate(zip(probes, passed, strict=True)) if not ok and probe.rival is None]
    texts = greedy_answers(model, [probes[i].prompt for i in failed], tokens, progress)
    written = dict(zip(failed, texts, strict=True))
    return [
        Result(probe, ok, written.get(i, probe.expected if ok else ""))
        for i, (probe, ok) in enumerate(zip(probes, passed, strict=True))
    ]
