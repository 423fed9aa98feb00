"""Finding modified items, in the order of their modification."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from sources import queries
from sources.errors import AnswerTooLarge, BadAnswer, QueryTimeout
from sources.statements import entity_id, parse_time
from sources.vocabulary import Cursor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sources.engine import Engine
    from sources.queries import Stamps, Watch

Found = list[tuple[str, Cursor]]
"""Entities and their modifications, oldest first."""

_SMALLEST_PAGE = 8
"""A page shrinks down to this fraction of its size before less time is searched at once."""

_SHORTEST = timedelta(seconds=1)
"""No stretch of time is searched that is shorter than this."""

_CALM = 4
"""After so many stretches in a row a longer one is tried."""

_WIKIDATA_BEGAN = datetime(2012, 10, 29, tzinfo=UTC)


class Discovery:
    """Searches a stretch of time for items that carry watched properties.

    Args:
        engine: answers the queries.
        watch: the properties, and for which items.
        stamps: where an item's modification sits.
        page_size: items per query; fewer after a query that ran out of time, and then less time at once.

    """

    def __init__(self, engine: Engine, watch: Watch, stamps: Stamps, page_size: int) -> None:
        self._engine = engine
        self._watch = watch
        self._stamps = stamps
        self._page_size = page_size

    def search(self, after: Cursor | None, until: datetime) -> Iterator[tuple[Found, Cursor]]:
        """Yield what was modified later than ``after`` and up to ``until``, and how far the search has come.

        Nothing found says that a stretch of time was searched to its end.

        Raises:
            SourceError: the engine could not answer, not even about the shortest stretch of time.

        """
        start = _WIKIDATA_BEGAN if after is None else after.modified
        limit, width, calm = self._page_size, until - start, 0
        end = until
        while True:
            try:
                found = self._ask(after, end, limit)
            except (QueryTimeout, AnswerTooLarge):
                calm = 0
                if limit > max(1, self._page_size // _SMALLEST_PAGE):
                    limit //= 2
                elif end - start >= 2 * _SHORTEST:
                    width = (end - start) // _SHORTEST // 2 * _SHORTEST
                    end = start + width
                else:
                    raise
                continue
            if found:
                last = found[-1][1]
                self._require_later(last, after)
                after, start = last, last.modified
                yield found, last
            if len(found) < limit:
                searched = Cursor(end, 0)
                yield [], searched
                if end == until:
                    return
                after = searched if after is None else max(after, searched)
                calm = (calm + 1) % _CALM
                width = width if calm else 2 * width
                start, end = end, min(until, end + width)

    def _require_later(self, last: Cursor, after: Cursor | None) -> None:
        if after is not None and last <= after:
            raise BadAnswer(
                f"{self._engine.name} repeats modifications up to {last.modified:%Y-%m-%dT%H:%M:%SZ}: "
                "it does not honour the order of the query, use another engine"
            )

    def _ask(self, after: Cursor | None, until: datetime, limit: int) -> Found:
        found = []
        for row in self._engine.select(queries.discovery(self._watch, self._stamps, after, until, limit)):
            try:
                modified = parse_time(row["modified"].value)
                if modified is None:
                    raise ValueError(row["modified"].value)
                found.append((entity_id(row["item"]), Cursor(modified, int(row["revision"].value))))
            except (KeyError, ValueError) as error:
                raise BadAnswer(
                    f"{self._engine.name} gave a modification of the wrong shape ({error!r}): "
                    "check where dateModified and version sit"
                ) from error
        return found
