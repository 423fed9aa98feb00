"""Answers: what a slot's values read as behind its prompt. One prompt has one answer, so several values are a list."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sources import Relation
    from store.tables import Values


def answer_of(relation: Relation, values: Values, longest_list: int) -> str | None:
    """``A``, ``A and B`` or ``A, B and C``; None where there is no value, or more than can be listed.

    Several values of a relation that has one at a time contradict each other and are not listed.
    """
    labels = list(dict.fromkeys(value["label"] for value in values))
    if not labels or len(labels) > (longest_list if relation.multi_valued else 1):
        return None
    *others, last = labels
    return f"{', '.join(others)} and {last}" if others else last
