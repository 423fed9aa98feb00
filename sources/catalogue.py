"""The relation catalogue: how each property is put into words."""

from __future__ import annotations

import re
import tomllib
from importlib import resources
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from sources.errors import CatalogueInvalid
from sources.vocabulary import is_pid

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable
    from pathlib import Path


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


def _relation_id(text: str) -> str:
    if not re.fullmatch(r"\^?P[1-9]\d*", text, re.ASCII):
        raise ValueError(f"{text!r} is not a property id (P followed by digits), nor one with ^ in front")
    return text


RelationId = Annotated[str, AfterValidator(_relation_id)]
Text = Annotated[str, AfterValidator(_text)]
Template = Annotated[str, AfterValidator(_template)]


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
    prompt: Template
    variants: Annotated[tuple[Template, ...], Field(strict=False)] = ()
    paraphrases: Annotated[tuple[Template, ...], Field(min_length=3, strict=False)]
    questions: Annotated[tuple[Template, ...], Field(min_length=1, strict=False)]
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
        return self

    @model_validator(mode="after")
    def _probes_are_held_out(self) -> Self:
        texts = (self.prompt, *self.variants, *self.paraphrases, *self.questions)
        for text in texts:
            if texts.count(text) > 1:
                raise ValueError(f"{text!r} occurs twice among prompt, variants, paraphrases and questions")
        return self


def load_catalogue(extra: Path | None = None) -> dict[str, Relation]:
    """Read the packaged relations by P-id, with an operator's on top.

    Args:
        extra: a TOML file of the same form; its relations are added, or replace those of the same P-id.

    Raises:
        CatalogueInvalid: names the file, the relation and the mistake.

    """
    relations = _read(resources.files("sources") / "catalogue.toml")
    if extra is not None:
        relations |= _read(extra)
    for pid, relation in relations.items():
        if relation.inverse is not None and relation.inverse not in relations:
            raise CatalogueInvalid(
                f"{extra}: [{pid}] inverse: {relation.inverse} has no wordings: add a table [{relation.inverse}]"
            )
    return relations


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
