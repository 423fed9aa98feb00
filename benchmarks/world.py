"""A world of real facts that goes on changing: the demo's snapshot, static facts, and changes as they happened.

Items are written in Wikidata's statement model. The static facts (stable_facts.jsonl.gz) are what must stay; the
changes (temporal_changes.jsonl.gz) come in groups, one to a cycle.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib import resources
from typing import TYPE_CHECKING, Any

from sources import load_catalogue

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

BEGIN = datetime(2024, 2, 1, tzinfo=UTC)
"""The instant of the first snapshot, behind everything in the demo's; a day passes between two."""
CLOCK = '<http://www.wikidata.org> schema:dateModified "{:%Y-%m-%dT%H:%M:%SZ}"^^xsd:dateTime .'
STABLE = 1600
Slot = tuple[str, str]


@dataclass(frozen=True)
class Value:
    """An item as a value."""

    qid: str
    label: str


@dataclass(frozen=True)
class Said:
    """What a slot says; ``subject`` is the item's label."""

    qid: str
    pid: str
    subject: str
    value: Value


@dataclass(frozen=True)
class Changed:
    """A fact that changed; ``when`` is a date, or the end of the time in which it did."""

    said: Said
    old: Value
    when: str

    @property
    def slot(self) -> Slot:
        """Its subject and property."""
        return self.said.qid, self.said.pid


def stable_facts(data: Path, wanted: int = STABLE) -> list[Said]:
    """Static facts of properties in the catalogue with one value, evenly spread over the file, one to a slot."""
    catalogue = load_catalogue()
    found: dict[Slot, Said] = {}
    for row in _rows(data / "stable_facts.jsonl.gz"):
        relation = catalogue.get(row["pid"])
        if relation is not None and relation.stated and row["n_objects"] == 1:
            said = Said(row["subject_qid"], row["pid"], row["subject"], Value(row["object_qid"], row["object"]))
            found.setdefault((said.qid, said.pid), said)
    facts = list(found.values())
    return facts[:: max(1, len(facts) // wanted)][:wanted]


def changes(data: Path, wanted: int) -> list[Changed]:
    """Changes without a flag of properties in the catalogue about items not in the demo's snapshot, in order of time.

    Slots are taken by a hash, each with its last two changes, so that some facts change twice.
    """
    catalogue, described = load_catalogue(), _described(snapshot())
    by_slot: dict[Slot, list[Changed]] = {}
    for row in _rows(data / "temporal_changes.jsonl.gz"):
        relation = catalogue.get(row["pid"])
        when = row["date"] or (row["window"] or [None])[-1]
        if row["flags"] or when is None or row["subject_qid"] in described or relation is None or not relation.stated:
            continue
        said = Said(row["subject_qid"], row["pid"], row["prompt_subject"], Value(row["new_qid"], row["new"]))
        by_slot.setdefault((said.qid, said.pid), []).append(Changed(said, Value(row["old_qid"], row["old"]), when))
    found: list[Changed] = []
    for slot in sorted(by_slot, key=lambda slot: hashlib.sha256(" ".join(slot).encode()).digest()):
        found += _chain(sorted(by_slot[slot], key=lambda each: each.when))
    return sorted(found[:wanted], key=lambda each: (each.when, each.slot))


def _chain(of_slot: Sequence[Changed]) -> list[Changed]:
    """The last change, and the one before where it leads there."""
    *_, last = of_slot
    before = [each for each in of_slot[-2:-1] if each.said.value == last.old and each.when < last.when]
    return [*before, last]


def groups(changed: Sequence[Changed], number: int) -> list[list[Changed]]:
    """Consecutive groups of nearly one size; of two changes of a slot the later one waits for the next group."""
    made: list[list[Changed]] = [[] for _ in range(number)]
    for position, change in enumerate(changed):
        group = position * number // len(changed)
        while group < number - 1 and any(change.slot == other.slot for other in made[group]):
            group += 1
        made[group].append(change)
    return made


class World:
    """Facts that are told at one instant after the other.

    Args:
        stable: facts that stay.
        changed: the changes to come, group by group.
    """

    def __init__(self, stable: Iterable[Said], changed: Sequence[Sequence[Changed]]) -> None:
        self._changed = changed
        self._now: dict[Slot, tuple[Said, int]] = {}  # and the instant at which it was said
        for change in reversed([change for group in changed for change in group]):
            said = change.said
            self._now[change.slot] = (Said(said.qid, said.pid, said.subject, change.old), 0)
        for said in stable:
            self._now.setdefault((said.qid, said.pid), (said, 0))
        self._instant = 0

    def advance(self) -> Sequence[Changed]:
        """Let the next group happen."""
        group = self._changed[self._instant]
        self._instant += 1
        for change in group:
            self._now[change.slot] = (change.said, self._instant)
        return group

    def turtle(self) -> str:
        """All that is said now."""
        text = snapshot()
        lines = [line for line in text.splitlines() if not line.startswith("<http://www.wikidata.org>")]
        now = BEGIN + timedelta(days=self._instant)
        return "\n".join([*lines, CLOCK.format(now), *self._items(_described(text))]) + "\n"

    def _items(self, described: set[str]) -> Iterator[str]:
        """Items that the demo's snapshot does not describe; a label once, for one item may be subject and value."""
        named = set(described)
        by_item: dict[str, list[tuple[Said, int]]] = {}
        for said, instant in self._now.values():
            if said.qid not in described:
                by_item.setdefault(said.qid, []).append((said, instant))
        for number, (qid, facts) in enumerate(by_item.items()):
            named.add(qid)
            instant = max(instant for _, instant in facts)
            revision, modified = 10**9 * (instant + 2) + number, BEGIN + timedelta(days=instant - 1, seconds=number)
            yield f'wd:{qid} rdfs:label "{_quoted(facts[0][0].subject)}"@en ; schema:version {revision} .'
            yield f'wd:{qid} schema:dateModified "{modified:%Y-%m-%dT%H:%M:%SZ}"^^xsd:dateTime .'
            for said, since in facts:
                name = f"s:{qid}-{said.pid}-{since}"
                yield f"wd:{qid} p:{said.pid} {name} ."
                yield f"{name} wikibase:rank wikibase:NormalRank ; ps:{said.pid} wd:{said.value.qid} ."
        for said, _ in [fact for facts in by_item.values() for fact in facts]:
            if said.value.qid not in named:
                named.add(said.value.qid)
                yield f'wd:{said.value.qid} rdfs:label "{_quoted(said.value.label)}"@en .'


def snapshot() -> str:
    """The demo's first snapshot."""
    return resources.files("sources").joinpath("snapshots", "before.ttl").read_text("utf-8")


def _described(text: str) -> set[str]:
    """Items that a snapshot has a description of."""
    return {line.split()[0].removeprefix("wd:") for line in text.splitlines() if line.startswith("wd:")}


def _quoted(label: str) -> str:
    return label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ")


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(file, "rt", encoding="utf-8") as stream:
        yield from map(json.loads, stream)
