"""Asking an engine about many items: in parts that shrink where it cannot cope."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sources.errors import AnswerTooLarge, BadAnswer, QueryTimeout
from sources.statements import entity_id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sources.engine import Engine, Row
    from sources.queries import Query

_CALM = 4
"""After so many answers in a row a part grows again."""

_MOST_FAILED = 8
"""So many single items in a row are not to blame themselves: the engine is in trouble."""


@dataclass(frozen=True, slots=True)
class Part:
    """The answer about some items.

    Attributes:
        qids: the items asked for.
        rows: what the engine said, about these items only.
        error: why there is no answer about the one item of this part, or None.

    """

    qids: tuple[str, ...]
    rows: list[Row]
    error: QueryTimeout | AnswerTooLarge | None = None


def in_parts(engine: Engine, qids: Sequence[str], ask: Callable[[Sequence[str]], Query], most: int) -> Iterator[Part]:
    """Ask about ``qids``, at most ``most`` at a time and half as many after an answer that was late or too large.

    An item that fails alone gives a part with an error, and the others go on.

    Raises:
        BadAnswer: a row is about an item that was not asked for.
        SourceError: the engine could not answer, whatever the item.

    """
    size, start, calm, failed = most, 0, 0, 0
    while start < len(qids):
        part = tuple(qids[start : start + size])
        try:
            rows = engine.select(ask(part))
        except (QueryTimeout, AnswerTooLarge) as error:
            calm = 0
            if len(part) > 1:
                size = len(part) // 2
                continue
            failed += 1
            if failed == _MOST_FAILED:
                raise
            yield Part(part, [], error)
        else:
            _require_asked(engine, part, rows)
            yield Part(part, rows)
            calm += 1
            if failed:
                size, calm, failed = most, 0, 0
            elif calm == _CALM:
                size, calm = min(most, 2 * size), 0
        start += len(part)


def _require_asked(engine: Engine, qids: tuple[str, ...], rows: Sequence[Row]) -> None:
    strangers = {entity_id(row["item"]) if "item" in row else "nothing" for row in rows} - set(qids)
    if strangers:
        raise BadAnswer(
            f"{engine.name} speaks of {min(strangers)!a:.40}, which was not asked for: "
            "check any proxy or cache in between"
        )
