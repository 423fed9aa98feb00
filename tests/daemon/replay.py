"""What Wikidata said about offices and their holders from 2021 to 2023, played again edit by edit.

Each snapshot is one repository's query result at one instant. What differs from the one before becomes edits of items,
with revisions and times; an edit becomes visible some time later, so that edits arrive late and out of order.
"""

from __future__ import annotations

import gzip
import json
import random
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sources import load_catalogue

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from living_wiki import LivingWiki

SNAPSHOTS = Path(__file__).parents[3] / "shared" / "data" / "wikidata_snapshots.jsonl.gz"
PROPERTIES = ("P6", "P1308")
Slot = tuple[str, str]
Says = frozenset[tuple[str, str]]


@dataclass(frozen=True, order=True)
class Edit:
    """An item as of a revision, made at ``modified`` and seen from ``visible`` on."""

    modified: datetime
    revision: int
    qid: str
    label: str
    says: Says
    visible: datetime


def snapshots(repositories: int | None = None, seed: int = 0) -> list[dict[str, Any]]:
    """All snapshots in the order of time, or those of some repositories."""
    with gzip.open(SNAPSHOTS, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    if repositories is not None:
        chosen = random.Random(seed).sample(sorted({row["repo"] for row in rows}), repositories)
        rows = [row for row in rows if row["repo"] in chosen]
    for row in rows:
        row["time"] = datetime.fromisoformat(row["time"]).astimezone(UTC).replace(microsecond=0)
    return sorted(rows, key=lambda row: (row["time"], row["repo"]))


def labels(rows: Iterable[dict[str, Any]]) -> dict[str, str]:
    """The first label of every item, or a plain one where it could not stand in a prompt."""
    found: dict[str, str] = {}
    for row in rows:
        for subject, subject_label, _, value, value_label, *_ in row["triples"]:
            for qid, label in ((subject, subject_label), (value, value_label)):
                usable = label and label.isascii() and label.isprintable() and len(label) <= 100
                found.setdefault(qid, label if usable else f"Item {qid}")
    return found


def edits(rows: Sequence[dict[str, Any]], latest: timedelta, seed: int) -> list[Edit]:
    """The edits that lead from snapshot to snapshot; each is seen up to ``latest`` after it was made."""
    chance = random.Random(seed)
    names = labels(rows)
    said: dict[str, dict[str, Says]] = {}  # by repository and item
    known: dict[str, Says] = {}
    made: list[Edit] = []
    for row in rows:
        grouped: dict[str, set[tuple[str, str]]] = defaultdict(set)
        for subject, _, pid, value, *_ in row["triples"]:
            grouped[subject].add((pid, value))
        said[row["repo"]] = {qid: frozenset(found) for qid, found in grouped.items()}
        now: dict[str, set[tuple[str, str]]] = defaultdict(set)
        for items in said.values():
            for qid, found in items.items():
                now[qid] |= found
        changed = [qid for qid in sorted(now.keys() | known.keys()) if frozenset(now[qid]) != known.get(qid)]
        chance.shuffle(changed)
        for number, qid in enumerate(changed):
            known[qid] = frozenset(now[qid])
            # A few in each second, so that only the revision tells them apart.
            moment = row["time"] + timedelta(seconds=number // 3)
            late = latest * chance.random()
            made.append(Edit(moment, len(made) + 1000, qid, names[qid], known[qid], moment + late))
    return sorted(made)


@dataclass
class Replay:
    """Plays edits into a wiki, and knows what a reader must have recorded.

    Args:
        wiki: shows the edits.
        made: all of them.
        lag: how far the reader stays behind the replication time.
        first: when the reader began: what it first sees at a modification until then is its baseline.

    """

    wiki: LivingWiki
    made: list[Edit]
    lag: timedelta
    first: datetime
    shown: dict[str, Edit] = field(default_factory=dict)
    expected: dict[Slot, list[tuple[str, ...]]] = field(default_factory=lambda: defaultdict(list))
    last: dict[Slot, tuple[str, ...]] = field(default_factory=dict)
    _next: int = 0
    _waiting: list[Edit] = field(default_factory=list)

    def prepare(self, names: dict[str, str]) -> None:
        """Give all values their labels."""
        for qid, label in names.items():
            self.wiki.name(qid, label)

    def show(self, now: datetime) -> None:
        """Complete up to ``now``: what is seen by then is seen, unless a later revision of the item is already."""
        while self._next < len(self.made) and self.made[self._next].modified <= now:
            self._waiting.append(self.made[self._next])
            self._next += 1
        for edit in [edit for edit in self._waiting if edit.visible <= now]:
            self._waiting.remove(edit)
            if edit.qid not in self.shown or edit.revision > self.shown[edit.qid].revision:
                self.shown[edit.qid] = edit
                self.wiki.put(edit.qid, edit.label, edit.revision, edit.modified, sorted(edit.says))
        self.wiki.clock(now).flush()

    def due(self, now: datetime) -> dict[Slot, tuple[str, ...] | None]:
        """What each slot says that a reader at ``now`` must know; None where it is ambiguous."""
        relations = load_catalogue()
        found: dict[Slot, tuple[str, ...] | None] = {}
        for edit in self.shown.values():
            if edit.modified <= now - self.lag:
                for pid in PROPERTIES:
                    values = sorted((value for p, value in edit.says if p == pid), key=lambda qid: (len(qid), qid))
                    ambiguous = len(values) > 1 and not relations[pid].multi_valued
                    found[edit.qid, pid] = None if ambiguous else tuple(values)
        return found

    def expect(self, now: datetime) -> None:
        """Note down the changes that a reader at ``now`` must have recorded by then."""
        for slot, values in self.due(now).items():
            if values is None:
                continue
            begins = values and slot not in self.last
            if values != self.last.get(slot, ()):
                self.last[slot] = values
                if not (begins and self.shown[slot[0]].modified <= self.first):
                    self.expected[slot].append(values)

    @property
    def is_over(self) -> bool:
        """Whether all edits are seen."""
        return self._next == len(self.made) and not self._waiting


def instants(made: Sequence[Edit], count: int, seed: int, end: timedelta) -> list[datetime]:
    """When to poll: at random instants around the edits, the last time when all of them are seen."""
    chance = random.Random(seed)
    around = chance.sample(made, min(count, len(made)))
    chosen = {edit.modified + timedelta(minutes=chance.uniform(0, 90)) for edit in around}
    return sorted({moment.replace(microsecond=0) for moment in chosen} | {made[-1].modified + end})
