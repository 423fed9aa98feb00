"""Wikidata as a feed of observations, over any engine that answers SPARQL.

The feed is at least once. Items that changed shortly before the cursor are read again, because an
endpoint applies updates slightly out of order; the caller skips what it holds at the same or a
newer revision.

Three things do not show in this feed, since they do not make an item "modified and carrying a
property": an item deleted, an item merged into another, and the last statement of all configured
properties gone from an item. Nor does an end time written in advance that passes unnoticed. The
caller finds these by looking at its tracked items again.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from sources import labels, queries
from sources.errors import AnswerTooLarge, BadAnswer, QueryTimeout, SourceError
from sources.queries import Query, Stamps
from sources.resolver import Resolution, resolve
from sources.statements import Statement, entity_id, fold, parse_time
from sources.vocabulary import Cursor, Observation, Outcome, Page, ValueKind, is_qid

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from sources.catalogue import Relation
    from sources.engine import Engine, Row

MAX_PAGE_SIZE = 5000
"""Well below the 10,000 rows at which some engines cut an answer short without saying so."""

_SMALLEST_PART = 8
"""A chunk shrinks down to this fraction of its size before a timeout is passed on."""

_NO_RESOLUTION = Resolution(Outcome.NONE, (), "no statement", "")


class WikidataSource:
    """Observations of the configured properties, oldest modification first.

    Args:
        engine: answers the queries.
        relations: the properties to watch, at least one.
        page_size: items per page.
        chunk: items per query for statements and labels. Halved when an answer is late or too large.
        overlap: how far before the cursor to read again.
        lag: how far to stay behind the replication time, which is an average and no bound.
        languages: of labels, in the order of preference.
        stamps: where an item's modification sits.

    Raises:
        SourceError: the settings cannot work.

    """

    def __init__(
        self,
        engine: Engine,
        relations: Sequence[Relation],
        *,
        page_size: int = 500,
        chunk: int = 200,
        overlap: timedelta = timedelta(minutes=30),
        lag: timedelta = timedelta(minutes=2),
        languages: Sequence[str] = ("en", "mul"),
        stamps: Stamps = Stamps.ITEM,
    ) -> None:
        self._engine = engine
        self._relations = {relation.pid: relation for relation in relations}
        self._page_size = page_size
        self._chunk = chunk
        self._overlap = overlap
        self._lag = lag
        self._languages = tuple(languages)
        self._stamps = stamps
        if not relations or len(self._relations) != len(relations):
            raise SourceError("the properties to watch are empty or repeated: list each relation once")
        if unstated := [relation.pid for relation in relations if not relation.stated]:
            raise SourceError(f"Wikidata has no statements of {unstated[0]}: watch properties only")
        if not (1 <= page_size <= MAX_PAGE_SIZE and 1 <= chunk <= MAX_PAGE_SIZE):
            raise SourceError(
                f"page size {page_size} and chunk {chunk} must be 1 to {MAX_PAGE_SIZE}: correct the settings"
            )
        if min(overlap, lag) < timedelta(0):
            raise SourceError("overlap and lag cannot be negative: correct the settings")
        try:
            for tag in self._languages:
                queries.require_language(tag)
        except ValueError as error:
            raise SourceError(f"{error}: correct the languages") from error
        if not self._languages:
            raise SourceError("no language for labels: name at least one")

    @property
    def name(self) -> str:
        """The engine's name, for messages and records."""
        return self._engine.name

    def replication_time(self) -> datetime:
        """Ask up to when the data is complete, UTC.

        Raises:
            SourceError: the engine could not answer, or the data does not say.

        """
        rows = self._engine.select(queries.replication_time())
        times = [time for row in rows if "time" in row and (time := parse_time(row["time"].value))]
        if not times:
            raise BadAnswer(
                f"{self.name} does not say how far its data goes: <http://www.wikidata.org> needs a schema:dateModified"
            )
        # Where several places say so, the older ones are the time of an initial load.
        return max(times)

    def pages(self, cursor: Cursor | None) -> Iterator[Page]:
        """Yield everything modified after ``cursor`` up to the replication time less the lag.

        A page's cursor is that of its last item, though never before ``cursor``. The last page may be
        empty: it moves the cursor up to where the feed was read, so that quiet times do not leave an
        ever longer stretch to be searched.

        Args:
            cursor: of the last page that was stored; None reads everything.

        Raises:
            SourceError: the engine could not answer. Pages yielded before are good.

        """
        replicated = self.replication_time()
        until = replicated - self._lag
        reached = cursor
        after = cursor
        if cursor is not None and self._overlap:
            after = Cursor(cursor.modified - self._overlap, 0)
        while True:
            found = self._discover(after, until)
            if found:
                last = found[-1][1]
                if after is not None and last <= after:
                    raise BadAnswer(
                        f"{self.name} repeats modifications up to {last.modified:%Y-%m-%dT%H:%M:%SZ}: "
                        "it does not honour the order of the query, use another engine"
                    )
                after = last
                reached = max(reached or after, after)
                yield self._page(found, reached, replicated)
            if len(found) < self._page_size:
                break
        if reached is None or reached.modified < until:
            yield Page((), Cursor(until, 0), 0)

    def _discover(self, after: Cursor | None, until: datetime) -> list[tuple[str, Cursor]]:
        """Fetch one page of (entity, modification)."""
        query = queries.discovery(tuple(self._relations), self._stamps, after, until, self._page_size)
        found = []
        for row in self._engine.select(query):
            try:
                modified = parse_time(row["modified"].value)
                if modified is None:
                    raise ValueError(row["modified"].value)
                found.append((entity_id(row["item"]), Cursor(modified, int(row["revision"].value))))
            except (KeyError, ValueError) as error:
                raise BadAnswer(
                    f"{self.name} gave a modification of the wrong shape ({error!r}): "
                    "check where dateModified and version sit"
                ) from error
        return found

    def _page(self, found: Sequence[tuple[str, Cursor]], cursor: Cursor, now: datetime) -> Page:
        # Later rows overwrite: an item that is being updated can appear at two revisions.
        items = {entity: modification for entity, modification in found if is_qid(entity)}
        observed = self._observe(items, now)
        return Page(tuple(observed), cursor, len(items))

    def _observe(self, items: Mapping[str, Cursor], now: datetime) -> Iterator[Observation]:
        pids = tuple(self._relations)
        slots = fold(self._in_chunks(tuple(items), lambda part: queries.statements(part, pids)))
        resolutions = self._resolve(slots, now)
        names = self._labels(items, resolutions.values())
        for qid, modification in items.items():
            for pid in pids:
                resolution = self._labelled(qid, resolutions.get((qid, pid), _NO_RESOLUTION), names)
                yield Observation(
                    qid=qid,
                    subject_label=names.get(qid, ""),
                    pid=pid,
                    outcome=resolution.outcome,
                    values=resolution.values,
                    reason=resolution.reason,
                    revision=modification.revision,
                    modified=modification.modified,
                    statement=resolution.statement,
                )

    def _resolve(
        self, slots: Mapping[tuple[str, str], tuple[Statement, ...]], now: datetime
    ) -> dict[tuple[str, str], Resolution]:
        return {
            (qid, pid): resolve(found, multi_valued=self._relations[pid].multi_valued, now=now)
            for (qid, pid), found in slots.items()
        }

    def _labels(self, items: Iterable[str], resolutions: Iterable[Resolution]) -> dict[str, str]:
        """Fetch labels of the subjects and of the items that are current values."""
        values = (value for resolution in resolutions for value in resolution.values)
        wanted = dict.fromkeys(items) | dict.fromkeys(v.id for v in values if v.kind is ValueKind.ITEM)
        rows = self._in_chunks(tuple(wanted), lambda part: queries.labels(part, self._languages))
        return labels.choose(rows, self._languages)

    def _labelled(self, qid: str, resolution: Resolution, names: Mapping[str, str]) -> Resolution:
        """Put labels into ``resolution``; ambiguous if there is a value and a label that cannot be used."""
        if not resolution.values:
            return resolution
        values = tuple(
            replace(value, label=names.get(value.id, "")) if value.kind is ValueKind.ITEM else value
            for value in resolution.values
        )
        texts = {qid: names.get(qid, "")} | {value.id: value.label for value in values}
        for name, text in texts.items():
            fault = labels.fault(text, self._languages)
            if fault is not None:
                return Resolution(Outcome.AMBIGUOUS, (), f"{fault}: {name!a:.80}", "")
        return replace(resolution, values=values)

    def _in_chunks(self, qids: Sequence[str], ask: Callable[[Sequence[str]], Query]) -> Iterator[Row]:
        """Fetch all rows about ``qids``; ask for less after an answer that was late or too large."""
        size, smallest, start = self._chunk, max(1, self._chunk // _SMALLEST_PART), 0
        while start < len(qids):
            part = qids[start : start + size]
            try:
                rows = self._engine.select(ask(part))
            except (QueryTimeout, AnswerTooLarge):
                size = len(part) // 2
                if size < smallest:
                    raise
                continue
            yield from rows
            start += len(part)
