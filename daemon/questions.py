"""Questions: a fact put to a model, with the answers that are told apart in what it says."""

from __future__ import annotations

import hashlib
from bisect import bisect
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

from sqlmodel import col, select

from daemon.answers import answer_of
from editor import fill
from store.changes import IN_PLAY
from store.tables import Aliases, Change, Fact, key

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from sqlmodel import Session

    from daemon.runtime import Runtime
    from store.tables import Values

POOL = 2000
"""Subjects of a property whose values may be rivals."""


@dataclass(frozen=True)
class Question:
    """A fact put to a model.

    Attributes:
        qid, pid: the slot.
        prompt: the edit prompt about the subject.
        expected: the current value; none where the fact ended without a successor.
        former: the value before, if it was one answer.
        aliases: other names of the current value that name neither the former one nor another subject's.
        former_aliases: the same of the former value.
        rivals: values of the same kind that the property has for other subjects, never the subject itself.
    """

    qid: str
    pid: str
    prompt: str
    expected: str | None
    former: str | None
    aliases: tuple[str, ...] = ()
    former_aliases: tuple[str, ...] = ()
    rivals: tuple[str, ...] = ()


def question_of(runtime: Runtime, change: Change, left: Values) -> Question | None:
    """The question about what a slot has changed to; None where there is no one answer to it.

    Args:
        runtime: for the wordings.
        change: of the slot.
        left: what the version that is asked was left with, which the new values displace.
    """
    relation, longest_list = runtime.relation(change.pid), runtime.settings.edit.longest_list
    expected = answer_of(relation, change.new_values, longest_list)
    former = answer_of(relation, left, longest_list)
    if expected is None and (change.new_values or former is None):
        return None
    return Question(change.qid, change.pid, fill(relation.prompt, change.subject_label), expected, former)


def questions_about(
    runtime: Runtime, session: Session, changes: Sequence[Change], left: Mapping[int, Values] | None = None
) -> list[Question]:
    """The questions about what slots have changed to, with aliases and rivals, in the order of the changes.

    Args:
        runtime: for the wordings.
        session: to read names and other subjects' values.
        changes: of the slots.
        left: what the version that is asked was left with, by the change's number; the values before it where not told.
    """
    before = {key(change): (left or {}).get(key(change), change.old_values) for change in changes}
    asked = [
        (change, question)
        for change in changes
        if (question := question_of(runtime, change, before[key(change)])) is not None
    ]
    names = _aliases(
        session, {value["id"] for change, _ in asked for value in (*change.new_values, *before[key(change)])}
    )
    rings = {pid: Ring(_values(session, pid)) for pid in {question.pid for _, question in asked}}
    wanted = runtime.settings.diff.rivals
    return [
        _told_apart(question, change, before[key(change)], names, rings[question.pid], wanted)
        for change, question in asked
    ]


def _aliases(session: Session, qids: set[str]) -> dict[str, list[str]]:
    ordered = sorted(qids)
    found: dict[str, list[str]] = {}
    for start in range(0, len(ordered), 500):  # databases bound the parameters of a statement
        rows = select(Aliases).where(col(Aliases.qid).in_(ordered[start : start + 500]))
        found |= {row.qid: row.names for row in session.exec(rows)}
    return found


def _told_apart(
    question: Question, change: Change, before: Values, names: dict[str, list[str]], ring: Ring, wanted: int
) -> Question:
    """The question, about values before and now, with rivals, and with the aliases that name one value only."""
    now = change.new_values
    present, former = _names(now, names), _names(before, names)
    labels = {question.expected, question.former}
    kind = (now or before)[0]["kind"]
    return replace(
        question,
        aliases=tuple(name for name in present if name not in ring.labels.union(labels, former)),
        former_aliases=tuple(name for name in former if name not in ring.labels.union(labels, present)),
        rivals=tuple(
            islice(ring.following(f"{question.qid} {question.pid}", kind, {*labels, change.subject_label}), wanted)
        ),
    )


def _names(values: Values, names: dict[str, list[str]]) -> list[str]:
    """Other names of the value, where it is one."""
    return names.get(values[0]["id"], []) if len(values) == 1 else []


def _values(session: Session, pid: str) -> set[tuple[str, str]]:
    """Label and kind of the values that subjects of a property have, of one value each."""
    facts = select(Fact.values).where(Fact.pid == pid, col(Fact.gone).is_(False)).order_by(col(Fact.qid))
    recorded = session.exec(facts.limit(POOL)).all()
    if not recorded:  # what is only told by expansion is no recorded fact
        changes = select(Change.new_values).where(Change.pid == pid, col(Change.state).in_(IN_PLAY))
        recorded = session.exec(changes.order_by(col(Change.id)).limit(POOL)).all()
    return {(value["label"], value["kind"]) for values in recorded if len(values) == 1 for value in values}


class Ring:
    """The values of a property by the digests of their labels.

    A subject's rivals follow its own digest on the ring (consistent hashing), so they look drawn by chance, take one
    look-up, and stay the same while values come and go elsewhere.

    Args:
        values: label and kind of each.
    """

    def __init__(self, values: Iterable[tuple[str, str]]) -> None:
        self._places = sorted((_digest(label), label, kind) for label, kind in values if label)
        self.labels = frozenset(label for _, label, _ in self._places)

    def following(self, name: str, kind: str, without: set[str | None]) -> Iterator[str]:
        """Labels of values of a kind from the place of a name on, once around."""
        start = bisect(self._places, (_digest(name), "", ""))
        for _, label, its_kind in (*self._places[start:], *self._places[:start]):
            if its_kind == kind and label not in without:
                yield label


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
