"""Answers: what a slot's values read as behind its prompt. One prompt has one answer, so several values are a list."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sources import Relation
    from store.tables import Change, Values


def unspeakable(change: Change) -> str | None:
    """Why a change cannot be put into words, or None if it can: its subject or a new value has no usable label."""
    labels = {change.qid: change.subject_label} | {value["id"]: value["label"] for value in change.new_values}
    without = [name for name, label in labels.items() if not label]
    return (
        f"no usable label of {', '.join(without)}: once the source has one, the change is made anew"
        if without
        else None
    )


def answer_of(relation: Relation, values: Values, longest_list: int) -> str | None:
    """``A``, ``A and B`` or ``A, B and C``; None where there is no value, one without a label, or too many to list.

    Several values of a relation that has one at a time contradict each other and are not listed.
    """
    labels = list(dict.fromkeys(value["label"] for value in values))
    if not labels or "" in labels or len(labels) > (longest_list if relation.multi_valued else 1):
        return None
    *others, last = labels
    return f"{', '.join(others)} and {last}" if others else last
