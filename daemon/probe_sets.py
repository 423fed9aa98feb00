"""Probe sets: which probes a candidate is measured on. Chosen by fixed rules, then frozen under a number and a digest.

The same set measures the candidate, the promoted version and the base. Where the ledger and the recorded facts are the
same, so is the set, and it keeps its number.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, ValidationError
from sqlmodel import select

from daemon.errors import ConfigInvalid
from daemon.gate import least_facts
from daemon.probes import Kind, Probe, edit_probes, shuffled
from daemon.protection import protects
from editor import fill
from store.ledger import ledger_edits, promoted, retracted_edits
from store.tables import Edit, Fact, ProbeSet, key

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from sqlmodel import Session

    from daemon.config import GateSection
    from daemon.respondent import Respondent
    from daemon.runtime import Runtime
    from sources import Relation
    from store.tables import Version

WRITE_ABOUT = (
    "Here is what a traveller ought to know about {}. First of all,",
    "A short article about {} begins as follows. In recent years",
    "The historian paused when she was asked about {}. Then she said that",
    "People often talk about {}. Most of them",
)
"""How a model is asked to write text of its own, for its fluency."""


@dataclass(frozen=True)
class Chosen:
    """What a candidate is measured on.

    Attributes:
        probes: prompts with expected answers.
        openings: beginnings of texts that the model goes on with.
        text: token ids of ordinary text, window by window.
    """

    probes: tuple[Probe, ...]
    openings: tuple[str, ...]
    text: tuple[tuple[int, ...], ...]

    def content(self) -> dict[str, object]:
        """All of it as JSON; ordinary text by its digest."""
        return {
            "probes": [asdict(probe) for probe in self.probes],
            "openings": list(self.openings),
            "text": hashlib.sha256(json.dumps(self.text).encode()).hexdigest(),
        }

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON, in hexadecimal."""
        canonical = json.dumps(self.content(), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(canonical.encode()).hexdigest()


def choose(runtime: Runtime, candidate: Version, base: Respondent, text: Sequence[Sequence[int]]) -> Chosen:
    """The probe set of a candidate.

    Raises:
        ConfigInvalid: a task file cannot be used.
    """
    settings = runtime.settings.gate
    with runtime.database.read() as session:
        edits = ledger_edits(session, candidate.id)
        present = promoted(session)
        former = set() if present is None else {key(edit) for edit in ledger_edits(session, present.id)}
        pool = stable_probes(session, edits, runtime.relations, settings)
        distant = distant_neighbours(session, edits, runtime.relations)
        retracted = retracted_edits(session, candidate.id)[: settings.reversal_probes]
        openings = _openings(session, edits, settings)
    probes = [
        *edit_probes(edits, former, runtime.relation, settings),
        *_reversals(base, retracted),
        *_known_pool(settings, base, pool, distant),
        *(probe for file in settings.tasks for probe in read_tasks(file)),
    ]
    return Chosen(tuple(probes), openings, tuple(tuple(window) for window in text))


def freeze(session: Session, chosen: Chosen) -> int:
    """Record a probe set, or find it recorded; returns its number."""
    digest = chosen.digest
    known = session.exec(select(ProbeSet).where(ProbeSet.digest == digest)).one_or_none()
    if known is None:
        known = ProbeSet(digest=digest, content=chosen.content())
        session.add(known)
        session.flush()
    return key(known)


def stable_probes(
    session: Session, edits: Sequence[Edit], relations: Mapping[str, Relation], settings: GateSection
) -> list[Probe]:
    """What an edit must leave alone, to choose from in a fixed order: facts without an edit that do not protect."""
    subjects = {edit.qid for edit in edits}
    facts = _unedited(session, edits, relations)
    answered = [
        Probe(
            Kind.SAME_SUBJECT if fact.qid in subjects else Kind.CONTROL, fact.qid, fact.pid, _ask(relations, fact),
            fact.values[0]["label"],
            known_by=tuple(fill(wording, fact.subject_label) for wording in relations[fact.pid].paraphrases[:2]),
        )
        for fact in facts
    ]  # fmt: skip
    by_property: dict[str, list[Fact]] = {}
    for fact in facts:
        if fact.qid not in subjects:
            by_property.setdefault(fact.pid, []).append(fact)
    return [*_neighbours(edits, by_property, relations, settings), *answered]


def distant_neighbours(session: Session, edits: Sequence[Edit], relations: Mapping[str, Relation]) -> list[Probe]:
    """Facts of other relations against the values written, for where the edited relations have too few subjects.

    They do not tell how neighbours fare as well as near ones do, but what an edit says everywhere they notice.
    """
    subjects, properties = {edit.qid for edit in edits}, {edit.pid for edit in edits}
    others = [
        fact for fact in _unedited(session, edits, relations)
        if fact.qid not in subjects and fact.pid not in properties
    ]  # fmt: skip
    pairs = [(fact, edits[number % len(edits)].target) for number, fact in enumerate(others)] if edits else []
    return [_neighbour(relations, fact, target) for fact, target in pairs if fact.values[0]["label"] != target]


def _unedited(session: Session, edits: Sequence[Edit], relations: Mapping[str, Relation]) -> list[Fact]:
    """Recorded facts with one value that are not edited and do not protect, in a fixed order."""
    edited = {(edit.qid, edit.pid) for edit in edits}
    facts = [
        fact for fact in session.exec(select(Fact))
        if fact.pid in relations and len(fact.values) == 1
        and (fact.qid, fact.pid) not in edited and not protects(fact.qid)
    ]  # fmt: skip
    return shuffled(facts, "stable", key=lambda fact: f"{fact.qid} {fact.pid}")


def _neighbour(relations: Mapping[str, Relation], fact: Fact, target: str) -> Probe:
    known_by = fill(relations[fact.pid].paraphrases[0], fact.subject_label)
    return Probe(
        Kind.NEIGHBOURHOOD, fact.qid, fact.pid, _ask(relations, fact), fact.values[0]["label"],
        rival=target, known_by=(known_by,),
    )  # fmt: skip


def _neighbours(
    edits: Sequence[Edit],
    facts: Mapping[str, Sequence[Fact]],
    relations: Mapping[str, Relation],
    settings: GateSection,
) -> list[Probe]:
    """For each edit other subjects of its relation, whose value must stay likelier than the one written.

    Those with the edit's former value come first: what the edit unlearns is what they should keep.
    """
    # A small ledger has more neighbours per edit, or there would be too few to decide.
    each = max(settings.neighbours_per_fact, -(-2 * settings.neighbourhood_probes // max(1, len(edits))))
    found: list[tuple[bool, Probe]] = []
    for edit in edits:
        others = [fact for fact in facts.get(edit.pid, []) if fact.values[0]["label"] != edit.target]
        near = shuffled(others, edit.qid, key=lambda fact: fact.qid)
        near.sort(key=lambda fact: fact.values[0]["label"] != edit.former)
        found += [
            (fact.values[0]["label"] != edit.former, _neighbour(relations, fact, edit.target)) for fact in near[:each]
        ]
    found = shuffled(found, "neighbours", key=lambda each: f"{each[1].qid} {each[1].pid} {each[1].rival}")
    return [probe for _, probe in sorted(found, key=lambda each: each[0])]


def _known_pool(
    settings: GateSection, base: Respondent, pool: Sequence[Probe], distant: Sequence[Probe]
) -> list[Probe]:
    """What the base knows of each kind: what it does not know cannot be lost."""

    def known(kind: Kind, limit: int) -> list[Probe]:
        return first_known(base, [probe for probe in pool if probe.kind is kind], limit)

    near = known(Kind.NEIGHBOURHOOD, settings.neighbourhood_probes)
    lacking = least_facts("neighbourhood", settings) - len({(probe.qid, probe.pid) for probe in near})
    return [
        *near,
        *first_known(base, distant, lacking),
        *known(Kind.SAME_SUBJECT, settings.same_subject_probes),
        *known(Kind.CONTROL, settings.control_probes),
    ]


def first_known(base: Respondent, pool: Sequence[Probe], limit: int) -> list[Probe]:
    """The first probes that the base knows, about at most ``limit`` facts."""
    known: list[Probe] = []
    facts: list[tuple[str, str]] = []
    for start in range(0, len(pool), max(1, limit)):
        if len(facts) >= limit:
            break
        known += knows(base, pool[start : start + limit])
        facts = list(dict.fromkeys((probe.qid, probe.pid) for probe in known))
    taken = set(facts[: max(0, limit)])
    return [probe for probe in known if (probe.qid, probe.pid) in taken]


def knows(base: Respondent, probes: Sequence[Probe]) -> list[Probe]:
    """The probes of which the base passes every wording in ``known_by``."""
    known = list(probes)
    for wording in range(max((len(probe.known_by) for probe in probes), default=0)):
        asked = [replace(probe, prompt=probe.known_by[wording]) for probe in known]
        passed = base.answer(asked).passed
        known = [probe for probe, ok in zip(known, passed, strict=True) if ok]
    return known


def _reversals(base: Respondent, retracted: Sequence[Edit]) -> list[Probe]:
    """What was written once and is no longer has to be answered as the base does."""
    prompts = [fill(edit.prompt, edit.subject) for edit in retracted]
    texts = base.own_words(prompts)
    return [
        Probe(Kind.REVERSAL, edit.qid, edit.pid, prompt, text)
        for edit, prompt, text in zip(retracted, prompts, texts, strict=True)
    ]


def _openings(session: Session, edits: Sequence[Edit], settings: GateSection) -> tuple[str, ...]:
    """Texts to write: half of them about edited subjects, the rest about recorded ones that do not protect."""
    edited = {edit.qid: edit.subject for edit in edits}
    recorded = {fact.qid: fact.subject_label for fact in session.exec(select(Fact)) if not protects(fact.qid)}
    others = {qid: label for qid, label in recorded.items() if qid not in edited}

    def about(subjects: Mapping[str, str]) -> list[str]:
        pairs = [(qid, wording) for qid in subjects for wording in WRITE_ABOUT]
        return [fill(wording, subjects[qid]) for qid, wording in shuffled(pairs, "openings", key="\n".join)]

    first = about(edited)[: settings.fluency_texts // 2]
    rest = [opening for opening in about(others) if opening not in first]
    return tuple([*first, *rest][: settings.fluency_texts])


class _Task(BaseModel):
    """One line of a task file."""

    model_config = ConfigDict(extra="forbid")

    prompt: str
    answer: str
    rival: str | None = None


def read_tasks(file: Path) -> list[Probe]:
    """An operator's own probes: one JSON object a line with ``prompt``, ``answer`` and perhaps a ``rival`` answer.

    Raises:
        ConfigInvalid: the file cannot be read, or a line is no task; names the line.
    """
    try:
        lines = file.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigInvalid(f"gate.tasks: cannot read {file}: {error}") from error
    probes = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            task = _Task.model_validate_json(line)
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(str(part) for part in problem["loc"]) or "line"
            raise ConfigInvalid(f"gate.tasks: {file}, line {number}: {where}: {problem['msg']}") from None
        name = f"{file.name}:{number}"
        probes.append(Probe(Kind.TASK, name, "", task.prompt, task.answer, rival=task.rival))
    return probes


def _ask(relations: Mapping[str, Relation], fact: Fact) -> str:
    return fill(relations[fact.pid].prompt, fact.subject_label)
