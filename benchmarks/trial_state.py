"""States for the gate's trials: the demo's, with one promoted version of real edits, and copies of it to spoil.

A copy has a database of its own, hard links to the versions, and the same caches; it records a random part of the facts
and reads another stretch of ordinary text, so that no two trials are measured on the same probe set.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlmodel import col, select

from daemon.config import load_settings
from daemon.demo import run_demo
from daemon.probe_sets import knows, stable_probes
from daemon.recall import surroundings
from daemon.respondent import Respondent
from daemon.runtime import BASE_VERSION, Runtime
from sources import load_catalogue
from store.ledger import get_version, ledger_edits, promoted
from store.tables import Change, Cycle, Edit, Fact, Outcome, Phase, ProbeResult, Version, key, utc_now

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from sqlmodel import Session

    from daemon.config import Settings
    from editor import Progress

DATABASE, CONFIGURATION = "factsyncd.sqlite", "factsyncd.toml"
TEXTS, TEXT_TOKENS = 5, 2600
"""Stretches of WikiText-2 (valid), and tokens that are read of one: twenty windows and a bit."""
STABLE = 1600
"""Static Wikidata facts that are recorded beside the demo's, for more controls and neighbours."""
KEPT = 0.8
"""Share of the facts without an edit that a copy keeps."""
SIZES = {
    "text_tokens": TEXT_TOKENS,
    "paraphrases_per_fact": 1,
    "neighbours_per_fact": 1,
    "neighbourhood_probes": 70,
    "control_probes": 100,
    "fluency_texts": 24,
    "fluency_tokens": 32,
}
"""What decides at the demo's margins in half a minute on one core; the thresholds are the demo's."""


@dataclass(frozen=True)
class Written:
    """A change to be written in a trial: the values of one slot; none withdraws it."""

    qid: str
    pid: str
    subject: str
    old: tuple[str, ...]
    new: tuple[str, ...]


def prepare(directory: Path, data: Path, progress: Progress) -> None:
    """Make the state that the trials copy, or find it made.

    Raises:
        SystemExit: the demo's cycle was not promoted.
    """
    if (directory / "texts" / f"{TEXTS - 1}.txt").exists():
        return
    result = run_demo(directory, progress)
    if result.outcome not in {Outcome.PROMOTED, Outcome.NOTHING}:
        raise SystemExit(f"the demo's version was not promoted: {result.data['detail']}")
    runtime = Runtime(trial_settings(directory), progress)
    with runtime.database.transaction() as session:
        session.add_all(_stable_facts(session, data))
    _ask_the_base(runtime)
    runtime.database.close()
    _write_texts(directory / "texts", data)


def _stable_facts(session: Session, data: Path) -> Iterator[Fact]:
    """Evenly spread over the file, of watched properties, about slots that are not recorded yet."""
    catalogue = load_catalogue()
    recorded = {(fact.qid, fact.pid) for fact in session.exec(select(Fact))}
    with gzip.open(data / "stable_facts.jsonl.gz", "rt", encoding="utf-8") as stream:
        rows = [row for row in map(json.loads, stream) if row["pid"] in catalogue and row["n_objects"] == 1]
    for row in rows[:: max(1, len(rows) // STABLE)]:
        slot = (row["subject_qid"], row["pid"])
        if catalogue[row["pid"]].stated and slot not in recorded:
            recorded.add(slot)
            yield Fact(
                qid=slot[0], pid=slot[1], subject_label=row["subject"], outcome="value", reason="one value",
                values=[{"kind": "item", "id": row["object_qid"], "label": row["object"]}],
                revision=1, statement="", modified_at=utc_now(), recorded_at=utc_now(),
            )  # fmt: skip


def _ask_the_base(runtime: Runtime) -> None:
    """So that no trial has to: which facts the base knows."""
    with runtime.database.read() as session:
        base, present = get_version(session, BASE_VERSION), promoted(session)
        assert present is not None
        edits = ledger_edits(session, present.id)
        probes = stable_probes(session, edits, runtime.relations, runtime.settings.gate)
    respondent = Respondent(runtime, base, surroundings(runtime.model(base).device))
    for kind in {probe.kind for probe in probes}:
        knows(respondent, [probe for probe in probes if probe.kind is kind])


def _write_texts(directory: Path, data: Path) -> None:
    """Stretches of ordinary text, one after the other."""
    with gzip.open(data / "wikitext2" / "valid.txt.gz", "rt", encoding="utf-8") as stream:
        lines = [line for line in stream if len(line.split()) > 20]
    directory.mkdir(exist_ok=True)
    for number in range(TEXTS):
        part = lines[number * len(lines) // TEXTS : (number + 1) * len(lines) // TEXTS]
        (directory / f"{number}.txt").write_text("".join(part), "utf-8")


def trial_settings(directory: Path, text: Path | None = None) -> Settings:
    """The demo's settings with the trials' sizes.

    Args:
        directory: of the state, with the demo's configuration.
        text: what is read for perplexity, if not the base's own writing.
    """
    settings = load_settings(directory / CONFIGURATION)
    gate = settings.gate.model_copy(update=SIZES | {"text": text})
    return settings.model_copy(update={"gate": gate, "model": settings.model.model_copy(update={"threads": 1})})


class TrialState:
    """A copy of the prepared state, for one trial or several in a row.

    Args:
        prepared: the state to copy.
        directory: of the copy; deleted by :meth:`remove`.
        seed: of what is drawn: facts, text, and whatever the trial draws.
    """

    def __init__(self, prepared: Path, directory: Path, seed: int) -> None:
        self.chance = random.Random(seed)
        self.begun: Sequence[Written] = ()
        self._directory = directory
        shutil.rmtree(directory, ignore_errors=True)
        shutil.copytree(prepared / "versions", directory / "versions", copy_function=os.link)
        for name in (DATABASE, CONFIGURATION):
            shutil.copyfile(prepared / name, directory / name)
        (directory / "cache").symlink_to(prepared / "cache", target_is_directory=True)
        text = prepared / "texts" / f"{self.chance.randrange(TEXTS)}.txt"
        self.runtime = Runtime(trial_settings(directory, text))
        self._forget_some_facts()

    def _forget_some_facts(self) -> None:
        with self.runtime.database.transaction() as session:
            edited = {edit.qid for edit in session.exec(select(Edit))}
            for fact in session.exec(select(Fact).order_by(col(Fact.qid), col(Fact.pid))).all():
                if fact.qid not in edited and self.chance.random() > KEPT:
                    session.delete(fact)

    def remove(self) -> None:
        """Close and delete it."""
        self.runtime.database.close()
        shutil.rmtree(self._directory)

    def accepted(self) -> list[Written]:
        """The promoted version's edits that took, as changes that would write them again, in random order."""
        with self.runtime.database.read() as session:
            present = promoted(session)
            assert present is not None
            took = {
                (probe.qid, probe.pid)
                for probe in session.exec(select(ProbeResult).where(ProbeResult.version_id == present.id))
                if probe.kind in {"efficacy", "retention"} and probe.correct
            }
            rows = [
                (edit, session.exec(select(Change).where(Change.id == edit.change_id)).one())
                for edit in ledger_edits(session, present.id)
            ]
        found = [
            Written(edit.qid, edit.pid, edit.subject, _labels(change.old_values), _labels(change.new_values))
            for edit, change in rows
            if (edit.qid, edit.pid) in took
        ]
        self.chance.shuffle(found)
        return found

    def recorded(self, pid: str) -> list[Written]:
        """Recorded facts of a property with one value and without an edit, in random order."""
        with self.runtime.database.read() as session:
            edited = {(edit.qid, edit.pid) for edit in session.exec(select(Edit))}
            facts = session.exec(select(Fact).where(Fact.pid == pid).order_by(col(Fact.qid))).all()
        found = [
            Written(fact.qid, pid, fact.subject_label, _labels(fact.values), _labels(fact.values))
            for fact in facts
            if len(fact.values) == 1 and (fact.qid, pid) not in edited
        ]
        self.chance.shuffle(found)
        return found

    def begin(self, changes: Sequence[Written]) -> int:
        """Record changes as settled, and begin a cycle that writes them; its number."""
        self.begun = changes
        with self.runtime.database.transaction() as session:
            cycle = Cycle(phase=Phase.BATCH)
            session.add(cycle)
            session.flush()
            now, revision = utc_now(), 10**10 + key(cycle)
            for change in changes:
                session.add(
                    Change(
                        qid=change.qid, pid=change.pid, subject_label=change.subject,
                        old_values=_values(change.old), new_values=_values(change.new),
                        revision=revision, statement="", modified_at=now, cycle_id=key(cycle),
                    )
                )  # fmt: skip
            return key(cycle)

    def candidate(self, cycle_id: int) -> Version | None:
        """The cycle's candidate, if its batch made one."""
        with self.runtime.database.read() as session:
            number = session.exec(select(Cycle.candidate_id).where(Cycle.id == cycle_id)).one()
            return None if number is None else get_version(session, number)


def _labels(values: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    return tuple(value["label"] for value in values)


def _values(labels: Sequence[str]) -> list[dict[str, Any]]:
    return [{"kind": "item", "id": f"Q{10**9 + number}", "label": label} for number, label in enumerate(labels)]
