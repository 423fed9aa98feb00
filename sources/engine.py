"""What an engine that answers SPARQL looks like to the rest of this package."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from sources.queries import Query

XSD = "http://www.w3.org/2001/XMLSchema#"
XSD_STRING = XSD + "string"
LANG_STRING = "http://www.w3.org/1999/02/22-rdf-syntax-ns#langString"


class TermKind(StrEnum):
    """The three kinds of RDF terms."""

    IRI = "iri"
    LITERAL = "literal"
    BNODE = "bnode"


@dataclass(frozen=True, slots=True)
class Term:
    """One RDF term of an answer; equal terms from two engines compare equal, blank nodes excepted.

    Attributes:
        kind: IRI, literal or blank node.
        value: the IRI, the lexical form, or the blank node's label.
        datatype: IRI of a literal's datatype, always set on literals; otherwise empty.
        language: lower-case language tag; empty if there is none.

    """

    kind: TermKind
    value: str
    datatype: str = ""
    language: str = ""


Row = dict[str, Term]
"""One solution; a variable without a value has no key."""


class Engine(Protocol):
    """Anything that answers SPARQL SELECT queries."""

    @property
    def name(self) -> str:
        """How to call this engine in a message."""

    def select(self, query: Query) -> list[Row]:
        """Give all solutions of ``query``.

        Raises:
            SourceError: the engine could not answer.

        """
