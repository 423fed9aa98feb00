"""Which label to use, and which labels cannot be used."""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING

from sources.statements import entity_id

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sources.engine import Row

_BAD_CATEGORIES = frozenset({"Cc", "Cn", "Co", "Cs", "Zl", "Zp"})
_BIDI_CONTROLS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""They can make a name read differently from what it is. Other format characters are part of scripts."""


def choose(rows: Iterable[Row], languages: Sequence[str]) -> dict[str, str]:
    """Pick one label per item: of the first language that has one; among several, the first by code point."""
    best: dict[str, tuple[int, str]] = {}
    for row in rows:
        term = row["label"]
        if term.language not in languages or not term.value.strip():
            continue
        qid = entity_id(row["item"])
        candidate = (languages.index(term.language), term.value)
        best[qid] = min(best.get(qid, candidate), candidate)
    return {qid: label for qid, (_, label) in best.items()}


def fault(label: str, languages: Sequence[str], longest: int = 120, blocklist: Sequence[str] = ()) -> str | None:
    """Say why a label cannot stand in a prompt, or None if it can.

    Args:
        label: the text, empty if there is none.
        languages: those that were asked for.
        longest: characters that a label may have.
        blocklist: regular expressions that it must not contain, whatever the case.

    """
    if not label.strip():
        return "no label in " + ", ".join(languages)
    if len(label) > longest:
        return f"label of more than {longest} characters"
    if "{" in label or "}" in label:
        return "label with a brace"
    if any(unicodedata.category(c) in _BAD_CATEGORIES or c in _BIDI_CONTROLS for c in label):
        return "label with a control character"
    if any(re.search(pattern, label, re.IGNORECASE) for pattern in blocklist):
        return "label on the blocklist"
    return None
