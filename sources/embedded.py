"""An engine inside the process: an RDF file in memory, or an Oxigraph store on disk."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

import pyoxigraph as ox

from sources.engine import Row, Term, TermKind
from sources.errors import BadAnswer, BadQuery, SnapshotUnreadable

if TYPE_CHECKING:
    from sources.queries import Query

FORMATS = {
    ".ttl": ox.RdfFormat.TURTLE,
    ".nt": ox.RdfFormat.N_TRIPLES,
    ".nq": ox.RdfFormat.N_QUADS,
    ".trig": ox.RdfFormat.TRIG,
}
"""RDF formats by file suffix; each may be followed by ``.gz``."""


class EmbeddedEngine:
    """Answers SPARQL from a file or a directory, read once when opened.

    Named graphs are read as one with the default graph.

    Args:
        path: a file with one of the suffixes of `FORMATS`, or the directory of an Oxigraph store.
            Nobody may write to that store while it is open here.

    Raises:
        SnapshotUnreadable: missing, corrupt, empty or of an unknown format.

    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._store = _open_directory(path) if path.is_dir() else _load_file(path)
        if not len(self._store):
            raise SnapshotUnreadable(f"{path} holds no triples: put a Wikidata RDF snapshot there")

    @property
    def name(self) -> str:
        """The file or directory."""
        return str(self._path)

    def select(self, query: Query) -> list[Row]:
        """Give all solutions of ``query``.

        Raises:
            BadQuery: it is not SPARQL.
            SnapshotUnreadable: the store on disk broke under the query.

        """
        try:
            answer = self._store.query(query.text, use_default_graph_as_union=True)
            if not isinstance(answer, ox.QuerySolutions):
                raise BadQuery("not a SELECT query: only SELECT can be asked")
            names = [variable.value for variable in answer.variables]
            return [
                {name: _term(term) for name in names if (term := solution[name]) is not None} for solution in answer
            ]
        except SyntaxError as error:
            raise BadQuery(f"the embedded engine does not accept the query: {error.msg}") from error
        except OSError as error:
            raise SnapshotUnreadable(
                f"{self._path} failed while it was read ({_line(error)}): restore it from a good copy"
            ) from error


def _open_directory(path: Path) -> ox.Store:
    try:
        return ox.Store.read_only(str(path))
    except (OSError, ValueError) as error:
        raise SnapshotUnreadable(
            f"{path} is no Oxigraph store ({_line(error)}): load one with `oxigraph load -l {path} -f FILE`"
        ) from error


def _load_file(path: Path) -> ox.Store:
    zipped = path.suffix == ".gz"
    suffix = Path(path.stem).suffix if zipped else path.suffix
    if suffix not in FORMATS:
        known = ", ".join(FORMATS)
        raise SnapshotUnreadable(f"{path} has no known RDF suffix: use one of {known}, optionally with .gz")
    store = ox.Store()
    try:
        with path.open("rb") as raw:
            file = gzip.open(raw) if zipped else raw  # noqa: SIM115 - ends with ``raw``
            store.bulk_load(input=cast("IO[bytes]", file), format=FORMATS[suffix])
    except FileNotFoundError as error:
        raise SnapshotUnreadable(f"{path} does not exist: check the path of the snapshot") from error
    except (SyntaxError, ValueError, OSError, EOFError, zlib.error) as error:
        raise SnapshotUnreadable(
            f"{path} is not readable as RDF ({_line(error)}): fetch the file again or correct it"
        ) from error
    return store


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _term(term: ox.NamedNode | ox.BlankNode | ox.Literal | ox.Triple) -> Term:
    match term:
        case ox.NamedNode():
            return Term(TermKind.IRI, term.value)
        case ox.BlankNode():
            return Term(TermKind.BNODE, term.value)
        case ox.Literal():
            return Term(TermKind.LITERAL, term.value, term.datatype.value, (term.language or "").lower())
        case _:
            raise BadAnswer("the snapshot has a triple as a value, Wikidata's RDF has none: check the file")
