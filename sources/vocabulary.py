"""The words in which a source reports facts to the daemon."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime

_QID = re.compile(r"Q[1-9]\d{0,11}", re.ASCII)
_PID = re.compile(r"P[1-9]\d{0,11}", re.ASCII)
"""Twelve digits are ten thousand times what Wikidata has reached; more is a mistake or an attempt."""


def is_qid(text: str) -> bool:
    """Whether ``text`` is an item id such as ``Q222``."""
    return _QID.fullmatch(text) is not None


def is_pid(text: str) -> bool:
    """Whether ``text`` is a property id such as ``P35``."""
    return _PID.fullmatch(text) is not None


def require_qid(text: str) -> str:
    """Return ``text`` if it is an item id.

    Raises:
        ValueError: it is not.

    """
    if not is_qid(text):
        raise ValueError(f"not an item id (Q followed by at most 12 digits): {text[:40]!r}")
    return text


def require_pid(text: str) -> str:
    """Return ``text`` if it is a property id.

    Raises:
        ValueError: it is not.

    """
    if not is_pid(text):
        raise ValueError(f"not a property id (P followed by at most 12 digits): {text[:40]!r}")
    return text


def _require_utc(moment: datetime) -> None:
    if moment.utcoffset() != timedelta(0):
        raise ValueError(f"not a time in UTC: {moment!r}")


class ValueKind(StrEnum):
    """What a value is."""

    ITEM = "item"
    STRING = "string"
    TIME = "time"
    QUANTITY = "quantity"


class Outcome(StrEnum):
    """What the statements of one (item, property) slot amount to at one moment."""

    VALUE = "value"
    """Exactly one current value."""
    SEVERAL = "several"
    """More than one current value of a multi-valued property."""
    NONE = "none"
    """No current statement."""
    AMBIGUOUS = "ambiguous"
    """The statements, or their labels, do not give a value that can be relied on."""
    SOMEVALUE = "somevalue"
    """There is a value, and Wikidata does not know which."""
    NOVALUE = "novalue"
    """Wikidata states that there is no value."""


@dataclass(frozen=True, slots=True)
class Value:
    """The object of a fact.

    Attributes:
        kind: what ``id`` is.
        id: Q-id of an item, otherwise the literal's canonical text.
        label: what a reader would write; empty for an item that is not labelled yet.

    """

    kind: ValueKind
    id: str
    label: str


@dataclass(frozen=True, slots=True)
class Observation:
    """What one (item, property) slot said at one revision of the item.

    Attributes:
        qid: the subject.
        subject_label: what a reader would call the subject; empty if it has no label.
        pid: the property.
        outcome: see `Outcome`.
        values: one for ``value``, two or more (ordered by id) for ``several``, otherwise empty. With a
            ``fault`` they keep kind and id and lose their labels; the id of a faulty text is a digest of it.
        reason: why this outcome, for an operator to read.
        revision: the item's revision.
        modified: when that revision was made, UTC.
        statement: names of the statements behind ``values``, in their order, separated by spaces
            (``Q222-1bb9...``); empty where there is no value.
        fault: why a label of it cannot stand in a prompt; then the outcome is ``ambiguous`` and the faulty
            text is in none of the fields. Empty if all can.
        sitelinks: in how many wikis the subject has a page; None where the source does not say.

    """

    qid: str
    subject_label: str
    pid: str
    outcome: Outcome
    values: tuple[Value, ...]
    reason: str
    revision: int
    modified: datetime
    statement: str
    fault: str = ""
    sitelinks: int | None = None

    def __post_init__(self) -> None:
        require_qid(self.qid)
        require_pid(self.pid)
        _require_utc(self.modified)


@dataclass(frozen=True, slots=True, order=True)
class Cursor:
    """How far a source was read: everything up to and including this modification.

    Attributes:
        modified: time of the modification, UTC.
        revision: breaks ties between items modified in the same second.

    """

    modified: datetime
    revision: int

    def __post_init__(self) -> None:
        _require_utc(self.modified)


@dataclass(frozen=True, slots=True)
class Failed:
    """An item that could not be read although it was asked for alone.

    Attributes:
        qid: the item.
        reason: what happened, one line.

    """

    qid: str
    reason: str


@dataclass(frozen=True, slots=True)
class Page:
    """A piece of the feed that is worth committing on its own.

    Attributes:
        observations: one per (item, property watched for it) of the page, less the items that failed.
        cursor: where to go on once the observations are stored; None if the page is not part of the feed.
        items: number of items on the page, failed ones included.
        failed: items to be read again later.

    """

    observations: tuple[Observation, ...]
    cursor: Cursor | None
    items: int
    failed: tuple[Failed, ...] = ()


class StandingState(StrEnum):
    """What has become of an item."""

    PRESENT = "present"
    REDIRECTED = "redirected"
    """Merged into another item."""
    ABSENT = "absent"
    """Deleted, or never there."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Where an item stands at the source, without what it says.

    Attributes:
        qid: the item.
        state: see `StandingState`.
        revision: of a present item, otherwise 0.
        modified: when a present item was last modified, UTC; otherwise None.
        target: the item that a redirected one was merged into, otherwise empty.

    """

    qid: str
    state: StandingState
    revision: int
    modified: datetime | None
    target: str
