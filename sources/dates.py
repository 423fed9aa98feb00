"""Dates as a reader would write them."""

from __future__ import annotations

import re

DAY, MONTH, YEAR, DECADE, CENTURY = 11, 10, 9, 8, 7
"""How Wikidata says how precise a time is; higher numbers are parts of a day, lower ones more than a century."""

_DATE = re.compile(r"([+-]?)(\d{4,9})-(\d\d)-(\d\d)(?:T.*)?", re.ASCII)
_MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip
_LONGEST = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
"""Days; which years have a 29 February depends on the calendar."""


def written(text: str, precision: int | None = None) -> str:
    """Write an ``xsd:dateTime``: ``6 February 1952``, ``March 1952``, ``1952``, ``1950s``, ``20th century``, ``44 BC``.

    Args:
        text: its lexical form; the year 0 is 1 BC. What is no date is given back as it is.
        precision: see `DAY` and the others. Without one the first of January is taken for its year: years are stored
            as their first day, and facts about years are far more common than facts about New Year's Day.

    """
    match = _DATE.fullmatch(text)
    if match is None:
        return text
    sign, year, month, day = match[1], int(match[2]), int(match[3]), int(match[4])
    if precision is None:
        precision = YEAR if (month, day) == (1, 1) else DAY
    era, number = _era(-year if sign == "-" else year)
    if precision < CENTURY:
        return text
    if precision <= YEAR:
        return _rough(number, precision) + era
    if not 1 <= month <= 12 or not 1 <= day <= _LONGEST[month - 1]:
        return text
    return f"{_MONTHS[month - 1]} {number}{era}" if precision == MONTH else f"{day} {_MONTHS[month - 1]} {number}{era}"


def _era(year: int) -> tuple[str, int]:
    return ("", year) if year > 0 else (" BC", 1 - year)


def _rough(year: int, precision: int) -> str:
    if precision == YEAR:
        return str(year)
    if precision == DECADE:
        return f"{year // 10 * 10}s"
    century = (year - 1) // 100 + 1
    ending = "th" if century % 100 in {11, 12, 13} else {1: "st", 2: "nd", 3: "rd"}.get(century % 10, "th")
    return f"{century}{ending} century"
