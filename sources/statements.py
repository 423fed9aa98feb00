"""From the rows of an answer to statements."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from typing import TYPE_CHECKING

from sources.dates import written
from sources.engine import XSD, Row, Term, TermKind
from sources.errors import BadAnswer
from sources.queries import ENTITY, GENID, STATEMENT, WIKIBASE
from sources.vocabulary import Value, ValueKind, is_pid, is_qid

if TYPE_CHECKING:
    from collections.abc import Iterable

_NUMBERS = frozenset(XSD + name for name in ("decimal", "integer", "double", "float"))
_MOST_DIGITS = 60
_FIRST_MOMENT = datetime.min.replace(tzinfo=UTC)
_LAST_MOMENT = datetime.max.replace(tzinfo=UTC)


class Rank(StrEnum):
    """How Wikidata's editors rate a statement; the value is the last part of the rank's IRI."""

    PREFERRED = "PreferredRank"
    NORMAL = "NormalRank"
    DEPRECATED = "DeprecatedRank"


class Snak(StrEnum):
    """What a statement says in the place of its value."""

    VALUE = "value"
    SOMEVALUE = "somevalue"
    NOVALUE = "novalue"


Moment = datetime | None
"""A qualifier's time, UTC; None if it is "some value" or not a date."""


@dataclass(frozen=True, slots=True)
class Statement:
    """One raw statement, whose qualifiers may each have several values.

    Attributes:
        id: the statement's name, ``Q222-1bb9...``.
        rank: the editors' rating.
        snak: whether there is a value.
        value: the value, with an empty label if it is an item; None unless ``snak`` is ``value``.
        language: of a value that is a text in one language, otherwise empty.
        starts: start time (P580).
        ends: end time (P582).
        points: point in time (P585).
        successors: ids of the items that replaced this value (P1366).

    """

    id: str
    rank: Rank
    snak: Snak
    value: Value | None
    language: str = ""
    starts: frozenset[Moment] = frozenset()
    ends: frozenset[Moment] = frozenset()
    points: frozenset[Moment] = frozenset()
    successors: frozenset[str] = frozenset()


def fold(rows: Iterable[Row]) -> dict[tuple[str, str], tuple[Statement, ...]]:
    """Put the cross product of optional qualifiers back together, by (item, property).

    A statement that comes with two values, as it can while an endpoint applies an update, gives two
    statements of the same name, so that the contradiction stays visible.

    Raises:
        BadAnswer: a row is not of the shape that was asked for.

    """
    merged: dict[tuple[str, str], dict[tuple[object, ...], Statement]] = {}
    for row in rows:
        try:
            slot = (entity_id(row["item"]), row["property"].value)
            new = _statement(row)
        except (KeyError, ValueError) as error:
            raise BadAnswer(
                f"a row of statements has the wrong shape ({error!r}): check that the data is Wikidata's"
            ) from error
        if not is_qid(slot[0]) or not is_pid(slot[1]):
            raise BadAnswer(f"a row of statements is about {slot}: check that the data is Wikidata's")
        seen = merged.setdefault(slot, {})
        key = (new.id, new.rank, new.snak, new.value)
        old = seen.get(key, new)
        seen[key] = replace(
            old,
            starts=old.starts | new.starts,
            ends=old.ends | new.ends,
            points=old.points | new.points,
            successors=old.successors | new.successors,
        )
    return {slot: tuple(found.values()) for slot, found in merged.items()}


def _statement(row: Row) -> Statement:
    snak, value = _snak(row.get("value"))
    return Statement(
        id=row["statement"].value.removeprefix(STATEMENT),
        rank=Rank(row["rank"].value.removeprefix(WIKIBASE)),
        snak=snak,
        value=value,
        language=row["value"].language if value is not None else "",
        starts=_moments(row.get("start")),
        ends=_moments(row.get("end")),
        points=_moments(row.get("point")),
        successors=frozenset({entity_id(row["successor"])} if "successor" in row else ()),
    )


def precisions(rows: Iterable[Row]) -> dict[str, int]:
    """Read how precise times are, by the statement's name; the coarsest of several counts.

    Raises:
        BadAnswer: a row is not of the shape that was asked for.

    """
    found: dict[str, int] = {}
    for row in rows:
        name, said = row["statement"].value.removeprefix(STATEMENT), row["precision"].value
        if not said.isdecimal():
            raise BadAnswer(f"the precision of a time is {said!a:.40}, no number: check that the data is Wikidata's")
        found[name] = min(found.get(name, int(said)), int(said))
    return found


def sitelinks(rows: Iterable[Row]) -> dict[str, int]:
    """Read in how many wikis items have a page, by item; the most of several counts, as while an update is applied.

    Raises:
        BadAnswer: a row is not of the shape that was asked for.

    """
    found: dict[str, int] = {}
    for row in rows:
        if "sitelinks" in row:
            qid, said = entity_id(row["item"]), row["sitelinks"].value
            if not said.isdecimal():
                raise BadAnswer(f"{qid} has {said!a:.40} sitelinks, no number: check that the data is Wikidata's")
            found[qid] = max(found.get(qid, 0), int(said))
    return found


def entity_id(term: Term) -> str:
    """Return ``Q222`` for the IRI of item Q222, and other terms' text as it is."""
    return term.value.removeprefix(ENTITY) if term.kind is TermKind.IRI else term.value


def parse_time(text: str) -> datetime | None:
    """Read an ``xsd:dateTime`` as UTC; None if it is not a date of our calendar.

    A time without zone is taken for UTC. Years outside 1 to 9999 become the first or the last
    representable moment: they are only compared.
    """
    sign, digits = (-1, text[1:]) if text.startswith("-") else (1, text.removeprefix("+"))
    year = digits.partition("-")[0]
    if not year.isdecimal():
        return None
    if sign * int(year) < 1:
        return _FIRST_MOMENT
    if int(year) > 9999:
        return _LAST_MOMENT
    try:
        moment = datetime.fromisoformat(digits)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _moments(term: Term | None) -> frozenset[Moment]:
    if term is None:
        return frozenset()
    return frozenset({parse_time(term.value) if term.kind is TermKind.LITERAL else None})


def _snak(term: Term | None) -> tuple[Snak, Value | None]:
    if term is None:
        return Snak.NOVALUE, None
    match term.kind:
        case TermKind.BNODE:
            return Snak.SOMEVALUE, None
        case TermKind.IRI if term.value.startswith(GENID):
            return Snak.SOMEVALUE, None
        case TermKind.IRI if is_qid(entity_id(term)):
            return Snak.VALUE, Value(ValueKind.ITEM, entity_id(term), "")
        case TermKind.LITERAL if term.datatype == XSD + "dateTime":
            return Snak.VALUE, Value(ValueKind.TIME, term.value, written(term.value))
        case TermKind.LITERAL if term.datatype in _NUMBERS:
            return Snak.VALUE, _quantity(term.value)
        case _:
            return Snak.VALUE, Value(ValueKind.STRING, term.value, term.value)


def _quantity(text: str) -> Value:
    """Read a number without its unit, which Wikidata keeps elsewhere; oddities stay text."""
    try:
        number = Decimal(text)
    except InvalidOperation:
        return Value(ValueKind.STRING, text, text)
    if not number.is_finite() or abs(number.adjusted()) > _MOST_DIGITS:
        return Value(ValueKind.STRING, text, text)
    if not number:
        return Value(ValueKind.QUANTITY, "0", "0")
    # Not Decimal.normalize(), which rounds to the context's precision.
    plain, grouped = f"{number:f}", f"{number:,f}"
    if "." in plain:
        plain, grouped = plain.rstrip("0").rstrip("."), grouped.rstrip("0").rstrip(".")
    return Value(ValueKind.QUANTITY, plain, grouped)
