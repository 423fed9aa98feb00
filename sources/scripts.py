"""Which writing systems a word mixes, and what it hides: the part of Unicode's UTS 39 that labels are held to."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

from fontTools.unicodedata import script_extension

if TYPE_CHECKING:
    from collections.abc import Iterator

_NO_SCRIPT = frozenset({"Zyyy", "Zinh"})
"""Common and inherited: characters that go with every script."""
_TOGETHER = (
    frozenset({"Latn", "Hani", "Hira", "Kana"}),
    frozenset({"Latn", "Hani", "Bopo"}),
    frozenset({"Latn", "Hani", "Hang"}),
)
"""The combinations of UTS 39's level "highly restrictive"."""
_JOINING = frozenset(
    "Arab Beng Deva Gujr Guru Khmr Knda Mlym Mong Mymr Nkoo Orya Sinh Syrc Taml Telu Tibt".split()  # noqa: SIM905
)
"""Scripts in whose spelling a zero-width joiner or non-joiner makes a difference."""
_ZWNJ, _ZWJ = "\u200c", "\u200d"
_VIRAMA = 9
"""Unicode's combining class of the sign that takes a consonant's vowel away."""
_VISIBLE = frozenset("\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd")
"""Format characters that are seen: signs around the digits or letters that follow them."""
_FILLERS = frozenset("\u115f\u1160\u3164\uffa0\u17b4\u17b5\u034f")
"""Invisible characters that count as letters or marks."""


def mixes_scripts(text: str) -> bool:
    """Whether a word of ``text`` mixes scripts beyond UTS 39's level "highly restrictive" (Latin with Cyrillic)."""
    return any(not _is_one_writing(word) for word in _words(text))


def hides(text: str) -> bool:
    """Whether ``text`` has characters without width that are no part of its script's spelling."""
    padded = f" {text} "
    return any(
        _is_invisible(char) and not _is_spelling(before, char, after)
        for before, char, after in zip(padded, padded[1:], padded[2:], strict=False)
    )


def _words(text: str) -> Iterator[str]:
    """Runs of letters; marks, digits and format characters do not end a word, and are left out of it."""
    letters = []
    for char in text:
        category = unicodedata.category(char)
        if category[0] == "L":
            letters.append(char)
        elif category[0] not in "MN" and category != "Cf":
            yield "".join(letters)
            letters = []
    yield "".join(letters)


def _is_one_writing(word: str) -> bool:
    scripts = [_scripts(char) for char in word]
    known = [each for each in scripts if not each & _NO_SCRIPT]
    if not known or frozenset.intersection(*known):
        return True
    return any(all(each & together for each in known) for together in _TOGETHER)


def _scripts(char: str) -> frozenset[str]:
    return frozenset(script_extension(char))


def _is_invisible(char: str) -> bool:
    return (unicodedata.category(char) == "Cf" and char not in _VISIBLE) or char in _FILLERS or _is_selector(char)


def _is_selector(char: str) -> bool:
    """Variation selectors: they choose a form of the character before them."""
    return "\ufe00" <= char <= "\ufe0f" or "\U000e0100" <= char <= "\U000e01ef" or "\u180b" <= char <= "\u180f"


def _is_spelling(before: str, char: str, after: str) -> bool:
    if _is_selector(char):
        return unicodedata.category(before)[0] == "S" or bool(_scripts(before) & {"Hani", "Mong"})
    if char == _ZWJ and unicodedata.combining(before) == _VIRAMA:
        return _joins(before)
    if char in (_ZWJ, _ZWNJ):
        return _joins(before) and _joins(after)
    return False


def _joins(char: str) -> bool:
    return unicodedata.category(char)[0] in "LM" and bool(_scripts(char) & _JOINING)
