"""Which value of a slot is current: a pure function of the statements and of the time.

1. Deprecated statements do not count.
2. Nor do those that have ended (P582 in the past or "some value", and no later start), nor those
   that have not begun (all P580 in the future, or all P585 in the future).
3. Of texts in several languages, only those in the most preferred language count, if one of the
   languages asked for is among them. Of all the rest, only preferred ones if there is one.
4. "Some value" or "no value" is the answer only if all that count say it; beside a real value it
   makes the slot ambiguous.
5. A multi-valued property answers with all values. A single-valued property answers with the only
   one. If there are more, nobody said which is current and the slot is ambiguous. The later start
   alone is no proof: Andorra has two heads of state who came into office in different years.
6. The one exception: normal statements in strict order of their start, of which all but one name a
   successor (P1366) among the other values. Then the one without a successor is current.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sources.statements import Rank, Snak, Statement
from sources.vocabulary import Outcome, Value

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from datetime import datetime

_NAMED_IN_REASON = 5


@dataclass(frozen=True, slots=True)
class Resolution:
    """The part of an `Observation` that follows from the statements; items are not labelled yet."""

    outcome: Outcome
    values: tuple[Value, ...]
    reason: str
    statement: str


def resolve(
    statements: Collection[Statement], *, multi_valued: bool, now: datetime, languages: Sequence[str] = ()
) -> Resolution:
    """Decide what the statements of one (item, property) amount to at ``now``.

    Args:
        statements: all of them, in any order.
        multi_valued: whether several values can be true at once.
        now: UTC; a start after it has not happened, an end up to it has.
        languages: of texts, in the order of preference.

    """
    verdicts = Counter(_verdict(statement, now) for statement in statements)
    current = [statement for statement in statements if _verdict(statement, now) == _CURRENT]
    if not current:
        return _without_value(Outcome.NONE, _why_none(verdicts))
    current = _in_one_language(current, languages)
    preferred = [statement for statement in current if statement.rank is Rank.PREFERRED]
    return _weigh(preferred or current, multi_valued=multi_valued)


_CURRENT = "current"


def _verdict(statement: Statement, now: datetime) -> str:
    if statement.rank is Rank.DEPRECATED:
        return "deprecated"
    if _has_ended(statement, now):
        return "ended"
    if _lies_ahead(statement.starts, now) or _lies_ahead(statement.points, now):
        return "not begun"
    return _CURRENT


def _has_ended(statement: Statement, now: datetime) -> bool:
    if None in statement.ends:
        return True
    ends = [end for end in statement.ends if end is not None]
    if not ends or max(ends) > now:
        return False
    # Several terms in one statement: a start after the last end opens a term that still runs.
    return not any(start is not None and max(ends) < start <= now for start in statement.starts)


def _lies_ahead(moments: Collection[datetime | None], now: datetime) -> bool:
    """Whether there are moments and all are known and in the future."""
    return bool(moments) and all(moment is not None and moment > now for moment in moments)


def _in_one_language(statements: list[Statement], languages: Sequence[str]) -> list[Statement]:
    spoken = {statement.language for statement in statements}
    best = next((tag for tag in languages if tag in spoken), None)
    return statements if best is None else [each for each in statements if each.language in {"", best}]


def _why_none(verdicts: Counter[str]) -> str:
    if not verdicts:
        return "no statement"
    return "no current statement: " + ", ".join(f"{n} {verdict}" for verdict, n in sorted(verdicts.items()))


def _weigh(best: Sequence[Statement], *, multi_valued: bool) -> Resolution:
    """Apply steps 4 to 6 to the statements that count, which are all of one rank."""
    snaks = {statement.snak for statement in best}
    if len(snaks) > 1:
        said = " and ".join(sorted(snaks))
        return _without_value(Outcome.AMBIGUOUS, f"statements of equal rank say {said}")
    if Snak.SOMEVALUE in snaks:
        return _without_value(Outcome.SOMEVALUE, "the value is unknown")
    if Snak.NOVALUE in snaks:
        return _without_value(Outcome.NOVALUE, "stated to have no value")
    by_value = _by_value(best)
    rank = "preferred" if best[0].rank is Rank.PREFERRED else "normal"
    if len(by_value) == 1:
        return _with_values(Outcome.VALUE, by_value, f"the only current value, {rank} rank")
    if multi_valued:
        return _with_values(Outcome.SEVERAL, by_value, f"{len(by_value)} current values, {rank} rank")
    last = _last_successor(best) if best[0].rank is Rank.NORMAL else None
    if last is not None:
        only = {value: found for value, found in by_value.items() if last in found}
        return _with_values(Outcome.VALUE, only, f"the last of {len(best)} statements linked by successor")
    ids = [value.id for value in by_value]
    more = f" and {len(ids) - _NAMED_IN_REASON} more" if len(ids) > _NAMED_IN_REASON else ""
    listed = ", ".join(ids[:_NAMED_IN_REASON]) + more
    return _without_value(
        Outcome.AMBIGUOUS, f"{len(ids)} current values of {rank} rank, none known to have ended: {listed}"
    )


def _by_value(statements: Sequence[Statement]) -> dict[Value, list[Statement]]:
    """Group statements by value, in an order that does not depend on the order of the input."""
    grouped: dict[Value, list[Statement]] = {}
    for statement in sorted(statements, key=lambda statement: statement.id):
        if statement.value is not None:
            grouped.setdefault(statement.value, []).append(statement)
    return dict(sorted(grouped.items(), key=lambda entry: _order(entry[0])))


def _order(value: Value) -> tuple[str, int, str]:
    """Sort by kind, and items by number: Q9 before Q10."""
    return value.kind, len(value.id), value.id


def _last_successor(statements: Sequence[Statement]) -> Statement | None:
    """Find the one statement that no other replaces, if starts and successors leave no doubt (step 6)."""
    dated: list[tuple[datetime, Statement]] = []
    for statement in statements:
        starts = [start for start in statement.starts if start is not None]
        if len(starts) != 1 or None in statement.starts:
            return None
        dated.append((starts[0], statement))
    if len({start for start, _ in dated}) != len(dated):
        return None
    held = {statement.value.id for statement in statements if statement.value is not None}
    open_ended = [
        statement
        for statement in statements
        if statement.value is None or not statement.successors & (held - {statement.value.id})
    ]
    latest = max(dated, key=lambda entry: entry[0])[1]
    return latest if open_ended == [latest] else None


def _with_values(outcome: Outcome, by_value: dict[Value, list[Statement]], reason: str) -> Resolution:
    names = (found[0].id for found in by_value.values())
    return Resolution(outcome, tuple(by_value), reason, " ".join(names))


def _without_value(outcome: Outcome, reason: str) -> Resolution:
    return Resolution(outcome, (), reason, "")
