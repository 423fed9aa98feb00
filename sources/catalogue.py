"""The relation catalogue: how each property is put into words."""

from __future__ import annotations

import tomllib
import unicodedata
from importlib import resources
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from sources.errors import CatalogueInvalid
from sources.vocabulary import is_pid

if TYPE_CHECKING:
    from collections.abc import Mapping
    from importlib.resources.abc import Traversable
    from pathlib import Path

_QUESTION_MARKS = frozenset("?\uff1f\u061f")
"""Latin, full-width and Arabic."""


def _text(text: str) -> str:
    if not text or text != text.strip() or not text.isprintable():
        raise ValueError(f"{text!r} must be one line of text without space around it")
    return text


def _template(text: str) -> str:
    if text.count("{}") != 1 or text.count("{") != 1 or text.count("}") != 1:
        raise ValueError(f"{text!r} must contain {{}} exactly once and no other brace")
    # Line breaks stay: a question may end with "A:" on a line of its own.
    for line in text.split("\n"):
        _text(line)
    return text


def _cloze(text: str) -> str:
    if not _QUESTION_MARKS.isdisjoint(text):
        raise ValueError(f"{text!r} is a question: it belongs under questions")
    return text


def _question(text: str) -> str:
    if _QUESTION_MARKS.isdisjoint(text):
        raise ValueError(f"{text!r} must contain a question mark")
    return text


def _relation_id(text: str) -> str:
    if not is_pid(text.removeprefix("^")):
        raise ValueError(f"{text!r} is not a property id (P followed by at most 12 digits), nor one with ^ in front")
    return text


def _folded(text: str) -> str:
    """What is left of a wording for the eye: no case, no punctuation, single spaces."""
    kept = "".join(" " if unicodedata.category(c)[0] in "PZC" else c for c in text.replace("{}", "\ufffc").casefold())
    return " ".join(kept.split())


RelationId = Annotated[str, AfterValidator(_relation_id)]
Text = Annotated[str, AfterValidator(_text)]
Cloze = Annotated[str, AfterValidator(_template), AfterValidator(_cloze)]
Question = Annotated[str, AfterValidator(_template), AfterValidator(_question)]


class Relation(BaseModel):
    """One property and its wordings; ``{}`` stands for the subject's label.

    Attributes:
        pid: the property. ``^P6`` is P6 read from its object's end (SPARQL's inverse path), where Wikidata has no
            property for that: it has wordings and is never asked for.
        label: its name.
        prompt: the text that an edit completes with the object's label.
        variants: further wordings that an edit is computed on, so that it holds however it is asked.
        paraphrases: held-out wordings of ``prompt``, completed in the same way; never used for an edit.
        questions: wordings as a question; never used for an edit.
        multi_valued: whether several values can be true at once.
        symmetric: whether it holds in both directions (borders on).
        inverse: the relation of the opposite direction, if it says the same.

    """

    # Strict: a number is no label. Only tuples are made leniently, from TOML's arrays.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    pid: RelationId
    label: Text
    prompt: Cloze
    variants: Annotated[tuple[Cloze, ...], Field(strict=False)] = ()
    paraphrases: Annotated[tuple[Cloze, ...], Field(min_length=3, strict=False)]
    questions: Annotated[tuple[Question, ...], Field(min_length=1, strict=False)]
    multi_valued: bool
    symmetric: bool
    inverse: RelationId | None = None

    @property
    def stated(self) -> bool:
        """Whether Wikidata has statements of it."""
        return is_pid(self.pid)

    @property
    def opposite(self) -> str | None:
        """The relation in which the object's end tells the same fact."""
        return self.pid if self.symmetric else self.inverse

    @model_validator(mode="after")
    def _one_opposite(self) -> Self:
        if self.symmetric and self.inverse is not None:
            raise ValueError("symmetric relations are their own inverse: leave inverse out")
        if self.inverse == self.pid:
            raise ValueError("a relation that is its own inverse is symmetric = true, without inverse")
        if self.inverse and "^" in self.pid + self.inverse and self.pid.strip("^") != self.inverse.strip("^"):
            raise ValueError(f"{self.inverse} is not {self.pid} read backwards")
        return self

    @model_validator(mode="after")
    def _probes_are_held_out(self) -> Self:
        texts = (self.prompt, *self.variants, *self.paraphrases, *self.questions)
        seen = set()
        for text in texts:
            if (folded := _folded(text)) in seen:
                raise ValueError(f"{text!r} occurs twice in this table, case and punctuation apart")
            seen.add(folded)
        return self


def load_catalogue(extra: Path | None = None) -> dict[str, Relation]:
    """Read the packaged relations by P-id, with an operator's on top.

    Args:
        extra: a TOML file of the same form; its relations are added, or replace those of the same P-id.

    Raises:
        CatalogueInvalid: names the file, the relation and the mistake.

    """
    packaged = resources.files("sources") / "catalogue.toml"
    relations = _read(packaged)
    if extra is not None:
        relations |= _read(extra)
    for relation in relations.values():
        _require_inverse(extra or packaged, relation, relations)
    return relations


def _require_inverse(file: Traversable | Path, relation: Relation, relations: Mapping[str, Relation]) -> None:
    """The tables of two properties name each other; that of ``^P6`` says by its name whose inverse it is."""
    pid, inverse = relation.pid, relation.inverse
    if inverse is None:
        return
    where = f"{file}: [{pid}] inverse"
    if inverse not in relations:
        raise CatalogueInvalid(f"{where}: {inverse} has no wordings: add a table [{inverse}]")
    if not inverse.startswith("^") and relations[inverse].inverse != pid:
        raise CatalogueInvalid(f'{where}: {inverse} does not point back: [{inverse}] must have inverse = "{pid}"')


def _read(file: Traversable | Path) -> dict[str, Relation]:
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CatalogueInvalid(f"{file}: cannot be read as TOML ({error}): correct the file") from error
    return {pid: _relation(file, pid, table) for pid, table in tables.items()}


def _relation(file: Traversable | Path, pid: str, table: Any) -> Relation:
    if not isinstance(table, dict) or "pid" in table:
        raise CatalogueInvalid(f"{file}: [{pid}] must be a table, without a key pid: correct the file")
    try:
        return Relation(pid=pid, **table)
    except ValidationError as error:
        mistakes = "; ".join(
            ": ".join(filter(None, (".".join(map(str, each["loc"])), each["msg"]))) for each in error.errors()
        )
        raise CatalogueInvalid(f"{file}: [{pid}] {' '.join(mistakes.split())}: correct the file") from error
