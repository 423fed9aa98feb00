"""Calibrate: facts that the base may know, for the editor to choose layers and strength by, and the file it fills."""

from __future__ import annotations

import hashlib
import json
import os
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError
from sqlmodel import col, select

from daemon.errors import ConfigInvalid
from daemon.protection import protects
from daemon.runtime import BASE_VERSION
from editor import Calibration, KnownFact, RequestInvalid
from editor import calibrate as find
from store.ledger import get_version
from store.tables import Fact

if TYPE_CHECKING:
    from pathlib import Path

    from daemon.runtime import Runtime

MOST_FACTS = 400


class _Line(BaseModel):
    """One line of a file of facts."""

    model_config = ConfigDict(extra="forbid")

    relation: str
    prompt: str
    subject: str
    answer: str
    paraphrases: tuple[str, ...] = ()
    variants: tuple[str, ...] = ()


def calibrate(runtime: Runtime, facts: Path | None) -> Calibration:
    """Layers and strength for the base.

    Args:
        runtime: of a state with recorded facts, unless a file gives them.
        facts: a file of facts, one JSON object a line.

    Raises:
        ConfigInvalid: the file cannot be read, or no fact is recorded yet.
        EditorError: the base knows too few facts, or an optimisation failed.
    """
    with runtime.database.read() as session:
        base = get_version(session, BASE_VERSION)
    given = recorded_facts(runtime) if facts is None else read_facts(facts)
    directory = runtime.settings.state.directory / "cache" / "preparation"
    chosen = runtime.settings.edit.overrides()
    for found in ("layers", "covariance_weight"):
        chosen.pop(found, None)
    edit = runtime.settings.edit
    return find(
        runtime.model(base), given, edit.text, directory, chosen, terminator=edit.terminator, progress=runtime.progress
    )


def recorded_facts(runtime: Runtime) -> list[KnownFact]:
    """Facts with one value about subjects that are never probed, so that probes stay disjoint from calibration.

    Raises:
        ConfigInvalid: there are none yet.
    """
    with runtime.database.read() as session:
        facts = [
            fact
            for fact in session.exec(select(Fact).order_by(col(Fact.qid), col(Fact.pid)))
            if fact.pid in runtime.relations and len(fact.values) == 1 and protects(fact.qid)
        ]
    if not facts:
        raise ConfigInvalid("no fact is recorded to calibrate by: run `factsyncd pull` first, or give --facts FILE")
    facts.sort(key=lambda fact: hashlib.sha256(f"{fact.qid} {fact.pid}".encode()).digest())
    return [
        KnownFact(
            fact.pid,
            runtime.relations[fact.pid].prompt,
            fact.subject_label,
            fact.values[0]["label"],
            runtime.relations[fact.pid].paraphrases,
            runtime.relations[fact.pid].variants,
        )
        for fact in facts[:MOST_FACTS]
    ]


def read_facts(file: Path) -> list[KnownFact]:
    """Facts from a file.

    Raises:
        ConfigInvalid: it cannot be read, or a line is no fact; names the line.
    """
    try:
        lines = file.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigInvalid(f"cannot read facts from {file}: {error}") from error
    facts = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            facts.append(KnownFact(**_Line.model_validate_json(line).model_dump()))
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(str(part) for part in problem["loc"]) or "line"
            raise ConfigInvalid(f"{file}, line {number}: {where}: {problem['msg']}") from None
        except RequestInvalid as error:
            raise ConfigInvalid(f"{file}, line {number}: {error}") from None
    return facts


def check_output(file: Path, *, force: bool) -> None:
    """Refuse to write over a file, before the work and not after it.

    Raises:
        ConfigInvalid: it is there and ``force`` was not given, or its directory is not.
    """
    if file.exists() and not force:
        raise ConfigInvalid(f"{file} is there already: give another --output, or --force to write over it")
    if not file.parent.is_dir():
        raise ConfigInvalid(f"{file.parent} is no directory: make it, or give another --output")


def write_settings(file: Path, found: Calibration) -> None:
    """A settings file for ``edit.settings``, whole or not at all."""
    best = found.chosen
    lines = [
        '# MEMIT settings found by `factsyncd calibrate`; use it with [edit] settings = "this file".',
        f"# shares in {len(found.trials)} trials: efficacy {best.efficacy:.3f}, paraphrase {best.paraphrase:.3f},",
        f"# neighbourhood {best.neighbourhood:.3f}, reading {best.reading:.3f}",
        *(f"{name} = {json.dumps(value)}" for name, value in found.settings.model_dump(mode="json").items()),
    ]
    partial = file.with_suffix(f".{os.getpid()}.partial")
    try:
        partial.write_text("\n".join(lines) + "\n", "utf-8")
        partial.replace(file)
    except OSError as error:
        raise ConfigInvalid(f"cannot write {file}: {error}") from error


def report(found: Calibration) -> dict[str, Any]:
    """What was tried and chosen, for JSON or a table."""
    trials = [
        {
            "layers": list(trial.layers),
            "covariance_weight": trial.covariance_weight,
            "efficacy": trial.efficacy,
            "paraphrase": trial.paraphrase,
            "neighbourhood": trial.neighbourhood,
            "reading": trial.reading,
            "score": trial.score,
        }
        for trial in found.trials
    ]
    return {"settings": found.settings.model_dump(mode="json"), "trials": trials}
