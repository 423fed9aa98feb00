"""Which label to use, and which labels cannot be used."""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING

from sources.scripts import hides, mixes_scripts
from sources.statements import entity_id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from sources.engine import Row

_BAD_CATEGORIES = frozenset({"Cc", "Cn", "Co", "Cs", "Zl", "Zp"})
_BIDI_CONTROLS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""They can make a name read differently from what it is."""
_MARKUP = re.compile(r"[<>|]|\[\[")
_URL = re.compile(r"\b[a-z][a-z0-9+.-]*://|\bwww\.\w", re.IGNORECASE)
_SPACES = re.compile(r"^\s|\s\s|\s$")


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


def choose_aliases(
    rows: Iterable[Row], languages: Sequence[str], fault_of: Callable[[str], str | None], most: int
) -> dict[str, tuple[str, ...]]:
    """Pick the other names of each item that can stand for it, at most ``most``.

    Those of the first language come first, then by code point. A name of less than two letters or digits ("U", a flag)
    is left out: too much text would begin with it by chance.
    """
    usable: dict[str, set[tuple[int, str]]] = {}
    for row in rows:
        term = row["label"]
        if term.language in languages and _tells(term.value) and fault_of(term.value) is None:
            usable.setdefault(entity_id(row["item"]), set()).add((languages.index(term.language), term.value))
    return {qid: tuple(dict.fromkeys(name for _, name in sorted(found)))[:most] for qid, found in usable.items()}


def _tells(name: str) -> bool:
    return sum(character.isalnum() for character in name) >= 2


def fault(
    label: str, languages: Sequence[str], longest: int = 120, blocklist: Iterable[re.Pattern[str]] = ()
) -> str | None:
    """Say why a label cannot stand in a prompt, or None if it can.

    Args:
        label: as the source gives it.
        languages: those it was looked for in.
        longest: most characters of a label.
        blocklist: what an operator will not have in a label; found anywhere in it.

    """
    if not label.strip():
        return "no label in " + ", ".join(languages)
    if len(label) > longest:
        return f"label of more than {longest} characters"
    if any(pattern.search(label) for pattern in blocklist):
        return "label on the blocklist"
    return _odd_character(label) or _odd_text(label)


def _odd_character(label: str) -> str | None:
    if "{" in label or "}" in label:
        return "label with a brace"
    if any(unicodedata.category(c) in _BAD_CATEGORIES or c in _BIDI_CONTROLS for c in label):
        return "label with a control character"
    if hides(label):
        return "label with an invisible character"
    return None


def _odd_text(label: str) -> str | None:
    if _SPACES.search(label):
        return "label with space around it or several spaces in a row"
    if _MARKUP.search(label):
        return "label with markup"
    if _URL.search(label):
        return "label with a web address"
    if mixes_scripts(label):
        return "label that mixes scripts within a word"
    return None
