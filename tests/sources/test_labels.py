from __future__ import annotations

import pytest

from sources import labels
from sources.engine import LANG_STRING, Term, TermKind
from sources.queries import ENTITY


def row(qid: str, label: str, language: str) -> dict[str, Term]:
    return {
        "item": Term(TermKind.IRI, ENTITY + qid),
        "label": Term(TermKind.LITERAL, label, LANG_STRING, language),
    }


def test_the_first_language_wins_whatever_the_order():
    rows = [
        row("Q1", "multi", "mul"),
        row("Q1", "english", "en"),
        row("Q2", "multi", "mul"),
        row("Q3", "x", "de"),
    ]
    for order in (rows, rows[::-1]):
        assert labels.choose(order, ("en", "mul")) == {"Q1": "english", "Q2": "multi"}


def test_two_labels_of_one_language_give_always_the_same():
    rows = [row("Q1", "new name", "en"), row("Q1", "ancient name", "en"), row("Q1", " ", "en")]
    assert labels.choose(rows, ("en",)) == labels.choose(rows[::-1], ("en",)) == {"Q1": "ancient name"}


@pytest.mark.parametrize("label", ["Ana Brnabić", "東京", "نیم‌فاصله", "O'Neill (b. 1950)", "🙂"])
def test_good_labels(label):
    assert labels.fault(label, ("en",)) is None


@pytest.mark.parametrize(
    ("label", "fault"),
    [
        ("", "no label in en, mul"),
        ("  ", "no label in en, mul"),
        ("{}", "label with a brace"),
        ("a}", "label with a brace"),
        ("a\nb", "label with a control character"),
        ("a\x00b", "label with a control character"),
        ("a\u202eb", "label with a control character"),
        ("a\u2028b", "label with a control character"),
        ("a\ud800b", "label with a control character"),
    ],
)
def test_labels_that_cannot_stand_in_a_prompt(label, fault):
    assert labels.fault(label, ("en", "mul")) == fault
