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

import re
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from sources import queries
from sources.discovery import Discovery
from sources.errors import BadAnswer, CursorTooOld, SourceError, SourceWentBack
from sources.parts import Part, in_parts
from sources.queries import Stamps
from sources.reading import Reader
from sources.statements import entity_id, parse_time
from sources.vocabulary import Cursor, Failed, Page, Standing, StandingState, is_pid, is_qid, require_qid

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from sources.catalogue import Relation
    from sources.discovery import Found
    from sources.engine import Engine, Row
    from sources.queries import Watch

MAX_PAGE_SIZE = 5000
"""Well below the 10,000 rows at which some engines cut an answer short without saying so."""


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
        memory: how old a cursor may be; None: any age.
        setback: how far the replication time may lie before the cursor, as servers behind one address differ;
            by default the overlap and an hour.
        filters: by property, the items that it is watched for: those that have, of each further property, one of
            the values. A property without filters is watched for all items.
        blocklist: regular expressions that no label may contain, whatever the case.
        longest_label: characters.

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
        memory: timedelta | None = None,
        setback: timedelta | None = None,
        filters: Mapping[str, Mapping[str, Sequence[str]]] | None = None,
        blocklist: Sequence[str] = (),
        longest_label: int = 120,
    ) -> None:
        self._engine = engine
        self._relations = {relation.pid: relation for relation in relations}
        self._page_size = page_size
        self._chunk = chunk
        self._overlap = overlap
        self._lag = lag
        self._languages = tuple(languages)
        self._stamps = stamps
        self._memory = memory
        self._setback = overlap + timedelta(hours=1) if setback is None else setback
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
        if longest_label < 1:
            raise SourceError(f"labels of at most {longest_label} characters: allow at least 1")
        if memory is not None and memory <= timedelta(0):
            raise SourceError("the source's memory must be longer than nothing: correct the settings")
        watch = _watch(self._relations, filters or {})
        self._discovery = Discovery(engine, watch, stamps, page_size)
        self._reader = Reader(
            engine,
            self._relations,
            watch,
            stamps,
            chunk=chunk,
            languages=self._languages,
            longest_label=longest_label,
            blocklist=[_pattern(text) for text in blocklist],
        )

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
        after = reached = cursor
        if cursor is not None:
            self._require_continuity(cursor, replicated)
            if self._overlap:
                after = Cursor(cursor.modified - self._overlap, 0)
        for found, searched in self._discovery.search(after, replicated - self._lag):
            if found or reached is None or searched > reached:
                reached = searched if reached is None else max(reached, searched)
                yield self._page(found, reached, replicated)

    def _require_continuity(self, cursor: Cursor, replicated: datetime) -> None:
        read = f"{cursor.modified:%Y-%m-%dT%H:%M:%SZ}"
        if cursor.modified - replicated > self._setback:
            raise SourceWentBack(
                f"{self.name} is complete up to {replicated:%Y-%m-%dT%H:%M:%SZ} only and was read up to {read}: "
                "if it was restored from an older copy, run `factsyncd pull --full`"
            )
        if self._memory is not None and replicated - cursor.modified > self._memory:
            raise CursorTooOld(
                f"{self.name} was last read up to {read}, longer ago than its memory of {self._memory}: "
                "run `factsyncd pull --full`"
            )

    def standing(self, qids: Sequence[str]) -> Iterator[Standing]:
        """Yield where each of ``qids`` stands, in this order.

        Raises:
            BadAnswer: also if nothing is known of any of several items asked for together: that many are not
                deleted at once.
            SourceError: the engine could not answer.

        """
        known: dict[str, Standing] = {}
        for part, found in self._standings(tuple(dict.fromkeys(qids))):
            if part.error is not None:
                raise part.error
            if len(part.qids) > 1 and not found:
                raise BadAnswer(
                    f"{self.name} gave an empty answer for {len(part.qids)} items that exist ({part.qids[0]} and on): "
                    "check that its data is complete"
                )
            known |= found
        for qid in qids:
            yield known.get(qid) or Standing(qid, StandingState.ABSENT, 0, None, "")

    def observe(self, qids: Sequence[str], replicated: datetime) -> Iterator[Page]:
        """Read items again, whenever they were modified; deleted and merged ones have no observations.

        Args:
            qids: the items.
            replicated: the time at which starts and ends are judged, UTC.

        Yields:
            Pages without a cursor.

        Raises:
            SourceError: the engine could not answer. Pages yielded before are good.

        """
        wanted = tuple(dict.fromkeys(qids))
        for start in range(0, len(wanted), self._page_size):
            items, failed = {}, []
            for part, found in self._standings(wanted[start : start + self._page_size]):
                if part.error is not None:
                    failed.append(Failed(part.qids[0], str(part.error)))
                for standing in found.values():
                    if standing.modified is not None:
                        items[standing.qid] = Cursor(standing.modified, standing.revision)
            observations, unread = self._reader.read(items, replicated)
            yield Page(observations, None, len(items) + len(failed), (*failed, *unread))

    def names(self, qids: Sequence[str]) -> dict[str, str]:
        """Fetch the labels of items; those without a label that can stand in a prompt are left out.

        Raises:
            SourceError: the engine could not answer.

        """
        return self._reader.names(qids)

    def aliases(self, qids: Sequence[str], most: int) -> dict[str, tuple[str, ...]]:
        """Fetch the other names of items (``skos:altLabel``) that can stand in a prompt.

        Args:
            qids: the items.
            most: names of an item.

        Returns:
            By item, those of the first language first; an item that cannot be read is left out.

        Raises:
            SourceError: the engine could not answer.

        """
        return self._reader.aliases(qids, most)

    def _page(self, found: Found, cursor: Cursor, now: datetime) -> Page:
        # Later rows overwrite: an item that is being updated can appear at two revisions.
        items = {entity: modification for entity, modification in found if is_qid(entity)}
        observations, failed = self._reader.read(items, now)
        return Page(observations, cursor, len(items), failed)

    def _standings(self, qids: Sequence[str]) -> Iterator[tuple[Part, dict[str, Standing]]]:
        """Ask what became of items; yields what was said of each part."""
        for part in in_parts(self._engine, qids, lambda part: queries.standing(part, self._stamps), self._chunk):
            try:
                yield part, standings(part.rows)
            except (KeyError, ValueError) as error:
                raise BadAnswer(
                    f"{self.name} gave a standing of the wrong shape ({error!r}): "
                    "check where dateModified and version sit"
                ) from error


def _watch(pids: Iterable[str], filters: Mapping[str, Mapping[str, Sequence[str]]]) -> Watch:
    watch = {pid: filters.get(pid, {}) for pid in pids}
    if strangers := filters.keys() - watch.keys():
        raise SourceError(f"filters for {min(strangers)}, which is not watched: watch it or drop the filters")
    for pid, kinds in watch.items():
        for of, values in kinds.items():
            if not is_pid(of) or not values or not all(map(is_qid, values)):
                raise SourceError(
                    f"the filter of {pid} by {of!r} needs a property and items, such as P31 and Q6256: correct it"
                )
    return watch


def standings(rows: Iterable[Row]) -> dict[str, Standing]:
    """Read the answer to `queries.standing`, by item.

    Merged counts more than present, and the newer of two revisions, as both can be seen while an engine applies an
    update.

    Raises:
        KeyError, ValueError: a row is not of the shape that was asked for.

    """
    found: dict[str, Standing] = {}
    for row in rows:
        standing = _standing(row)
        known = found.get(standing.qid, standing)
        found[standing.qid] = max(known, standing, key=_how_late)
    return found


def _how_late(standing: Standing) -> tuple[str, int, str]:
    return standing.target, standing.revision, "" if standing.modified is None else standing.modified.isoformat()


def _standing(row: Row) -> Standing:
    qid = entity_id(row["item"])
    if "target" in row:
        return Standing(qid, StandingState.REDIRECTED, 0, None, require_qid(entity_id(row["target"])))
    modified = parse_time(row["modified"].value)
    if modified is None:
        raise ValueError(row["modified"].value)
    return Standing(qid, StandingState.PRESENT, int(row["revision"].value), modified, "")


def _pattern(text: str) -> re.Pattern[str]:
    try:
        pattern = re.compile(text, re.IGNORECASE)
    except re.error as error:
        raise SourceError(f"the blocklist's {text!r} is no regular expression ({error}): correct it") from error
    if pattern.search(""):
        raise SourceError(f"the blocklist's {text!r} matches every label: correct it")
    return pattern
