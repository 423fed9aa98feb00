"""Reading items: what the watched properties say at one moment, in words that can stand in a prompt."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from sources import labels, queries
from sources.dates import written
from sources.errors import BadAnswer
from sources.parts import in_parts
from sources.resolver import Resolution, resolve
from sources.statements import entity_id, fold, precisions, sitelinks
from sources.vocabulary import Cursor, Failed, Observation, Outcome, Value, ValueKind

if TYPE_CHECKING:
    import re
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from datetime import datetime

    from sources.catalogue import Relation
    from sources.engine import Engine, Row
    from sources.queries import Query, Stamps, Watch

_NO_RESOLUTION = Resolution(Outcome.NONE, (), "no statement", "")


class Reader:
    """Turns items into observations.

    Args:
        engine: answers the queries.
        relations: the properties to watch, by P-id.
        watch: the same properties, and for which items.
        stamps: where an item's figures sit.
        chunk: items per query.
        languages: of labels, in the order of preference.
        longest_label: characters.
        blocklist: what no label may contain.

    """

    def __init__(
        self,
        engine: Engine,
        relations: Mapping[str, Relation],
        watch: Watch,
        stamps: Stamps,
        *,
        chunk: int,
        languages: Sequence[str],
        longest_label: int,
        blocklist: Sequence[re.Pattern[str]],
    ) -> None:
        self._engine = engine
        self._relations = relations
        self._watch = watch
        self._stamps = stamps
        self._chunk = chunk
        self._languages = languages
        self._fault = partial(labels.fault, languages=languages, longest=longest_label, blocklist=blocklist)

    def read(self, items: Mapping[str, Cursor], now: datetime) -> tuple[tuple[Observation, ...], tuple[Failed, ...]]:
        """Read ``items`` at these modifications; returns the observations, and the items that failed.

        Raises:
            SourceError: the engine could not answer.

        """
        reading = _Reading()
        pids = tuple(self._watch)
        rows = self._ask(reading, tuple(items), lambda part: queries.statements(part, pids, self._stamps))
        slots, reading.sitelinks = fold(rows), sitelinks(rows)
        watched = self._watched(reading, tuple(items))
        resolutions = {
            (qid, pid): resolve(
                found, multi_valued=self._relations[pid].multi_valued, now=now, languages=self._languages
            )
            for (qid, pid), found in slots.items()
            if pid in watched[qid]
        }
        resolutions |= self._dated(reading, resolutions)
        self._name(reading, items, resolutions)
        observations = [
            self._observation(qid, pid, items[qid], resolutions.get((qid, pid), _NO_RESOLUTION), reading)
            for qid in items
            if qid not in reading.failed
            for pid in watched[qid]
        ]
        failed = tuple(Failed(qid, reading.failed[qid]) for qid in items if qid in reading.failed)
        return tuple(observations), failed

    def _watched(self, reading: _Reading, qids: Sequence[str]) -> dict[str, list[str]]:
        """Fetch which properties are watched for which of ``qids``."""
        of = tuple(dict.fromkeys(pid for kinds in self._watch.values() for pid in kinds))
        rows = self._ask(reading, qids, lambda part: queries.kinds(part, of)) if of else []
        held = {
            (entity_id(row["item"]), row["property"].value, entity_id(row["kind"]))
            for row in _whole(rows, "property", "kind")
        }
        return {
            qid: [
                pid
                for pid, kinds in self._watch.items()
                if all(any((qid, of, value) in held for value in values) for of, values in kinds.items())
            ]
            for qid in qids
        }

    def _dated(
        self, reading: _Reading, resolutions: Mapping[tuple[str, str], Resolution]
    ) -> dict[tuple[str, str], Resolution]:
        """Write times as precisely as they are known; returns the resolutions that have some."""
        timed = {
            slot: resolution
            for slot, resolution in resolutions.items()
            if any(value.kind is ValueKind.TIME for value in resolution.values)
        }
        pids = tuple(dict.fromkeys(pid for _, pid in timed))
        qids = tuple(dict.fromkeys(qid for qid, _ in timed))
        rows = self._ask(reading, qids, lambda part: queries.precisions(part, pids))
        found = precisions(_whole(rows, "statement", "precision"))
        return {
            slot: replace(
                resolution,
                values=tuple(
                    replace(value, label=written(value.id, found.get(name))) if value.kind is ValueKind.TIME else value
                    for value, name in zip(resolution.values, resolution.statement.split(" "), strict=False)
                ),
            )
            for slot, resolution in timed.items()
        }

    def names(self, qids: Iterable[str]) -> dict[str, str]:
        """Fetch the labels of items that can stand in a prompt."""
        reading = _Reading()
        self._fetch_names(reading, tuple(dict.fromkeys(qids)))
        return {qid: name for qid, name in reading.names.items() if self._fault(name) is None}

    def aliases(self, qids: Iterable[str], most: int) -> dict[str, tuple[str, ...]]:
        """Fetch the other names of items, at most so many of each; an item that failed is left out."""
        wanted, reading = tuple(dict.fromkeys(qids)), _Reading()
        rows = self._ask(reading, wanted, lambda part: queries.aliases(part, self._languages))
        found = labels.choose_aliases(_whole(rows, "label"), self._languages, self._fault, most)
        return {qid: found.get(qid, ()) for qid in wanted if qid not in reading.failed}

    def _name(self, reading: _Reading, items: Iterable[str], resolutions: Mapping[tuple[str, str], Resolution]) -> None:
        """Fetch labels of the subjects and of the items that are current values."""
        users: dict[str, list[str]] = {qid: [qid] for qid in items if qid not in reading.failed}
        for (qid, _), resolution in resolutions.items():
            for value in resolution.values:
                if value.kind is ValueKind.ITEM:
                    users.setdefault(value.id, []).append(qid)
        for unnamed, reason in self._fetch_names(reading, tuple(users)).items():
            # Without its label we do not know whether it has one: the subject is read again.
            reading.failed |= dict.fromkeys(users[unnamed], reason)

    def _fetch_names(self, reading: _Reading, qids: Sequence[str]) -> dict[str, str]:
        """Add labels to ``reading``; returns the items that failed and why."""
        asked = _Reading()
        rows = self._ask(asked, qids, lambda part: queries.labels(part, self._languages))
        reading.names |= labels.choose(_whole(rows, "label"), self._languages)
        return asked.failed

    def _ask(self, reading: _Reading, qids: Sequence[str], ask: Callable[[Sequence[str]], Query]) -> list[Row]:
        """Fetch all rows about ``qids``, and note the items that failed."""
        rows: list[Row] = []
        for part in in_parts(self._engine, qids, ask, self._chunk):
            rows += part.rows
            if part.error is not None:
                reading.failed[part.qids[0]] = str(part.error)
        return rows

    def _observation(
        self, qid: str, pid: str, modification: Cursor, resolution: Resolution, reading: _Reading
    ) -> Observation:
        name = reading.names.get(qid, "")
        subject_fault = self._fault(name)
        values, fault = self._labelled(resolution.values, reading.names)
        if resolution.values and subject_fault is not None:
            fault = f"{subject_fault}: {qid}"
        return Observation(
            qid=qid,
            subject_label="" if subject_fault else name,
            pid=pid,
            outcome=Outcome.AMBIGUOUS if fault else resolution.outcome,
            values=tuple(replace(value, label="") for value in values) if fault else values,
            reason=fault or resolution.reason,
            revision=modification.revision,
            modified=modification.modified,
            statement=resolution.statement,
            fault=fault,
            sitelinks=reading.sitelinks.get(qid),
        )

    def _labelled(self, values: Iterable[Value], names: Mapping[str, str]) -> tuple[tuple[Value, ...], str]:
        """Put labels into ``values``, and a digest in the place of a text that cannot be used; says the first fault."""
        labelled, faults = [], []
        for value in values:
            text = names.get(value.id, "") if value.kind is ValueKind.ITEM else value.label
            fault = self._fault(text)
            new = replace(value, label=text)
            if fault is not None:
                new = replace(value, id=value.id if value.kind is ValueKind.ITEM else _digest(value.id))
                faults.append(f"{fault}: {new.id}")
            labelled.append(new)
        return tuple(labelled), next(iter(faults), "")


class _Reading:
    """What is gathered while one page is read."""

    def __init__(self) -> None:
        self.names: dict[str, str] = {}
        self.failed: dict[str, str] = {}
        self.sitelinks: dict[str, int] = {}


def _whole(rows: Iterable[Row], *variables: str) -> Iterator[Row]:
    """Yield rows that have these variables, as all must."""
    for row in rows:
        if missing := set(variables) - row.keys():
            raise BadAnswer(f"a row lacks its {min(missing)}: check that the endpoint speaks SPARQL 1.1")
        yield row


def _digest(text: str) -> str:
    """A stable id for a text that must not be shown."""
    return "sha256:" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
