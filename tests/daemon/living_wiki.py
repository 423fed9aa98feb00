"""A Wikidata that is edited while it is read: in a store inside the process, or in a real server by SPARQL updates."""

from __future__ import annotations

import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pyoxigraph as ox
from small_graph import PREFIXES

from sources import WikidataSource
from sources.embedded import EmbeddedEngine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from datetime import datetime

    from sources import Relation

HEAD = "".join(f"PREFIX {line.split()[1]} {line.split()[2]}\n" for line in PREFIXES.splitlines())
STATEMENT = "http://www.wikidata.org/entity/statement/"


class StoreEngine(EmbeddedEngine):
    """Answers from a store that others write to."""

    def __init__(self, store: ox.Store) -> None:
        self._path, self._store = Path("living"), store


def literal(text: str) -> str:
    return '"' + "".join(c if c.isprintable() and c not in '"\\' else f"\\u{ord(c):04X}" for c in text) + '"'


def stamp(moment: datetime) -> str:
    return f'"{moment:%Y-%m-%dT%H:%M:%SZ}"^^xsd:dateTime'


@dataclass
class LivingWiki:
    """Items and their edits.

    Args:
        update: runs SPARQL updates.

    """

    update: Callable[[str], object]
    _pieces: list[str] = field(default_factory=list)

    def clock(self, moment: datetime) -> LivingWiki:
        """Complete up to then."""
        return self._do(
            "DELETE WHERE { <http://www.wikidata.org> schema:dateModified ?t }",
            f"INSERT DATA {{ <http://www.wikidata.org> schema:dateModified {stamp(moment)} }}",
        )

    def put(
        self, qid: str, label: str | None, revision: int, modified: datetime, says: Iterable[tuple[str, str]] = ()
    ) -> LivingWiki:
        """An item as of a revision, with statements of normal rank whose values are items."""
        lines = [f"wd:{qid} schema:version {revision} ; schema:dateModified {stamp(modified)} ."]
        if label is not None:
            lines.append(f"wd:{qid} rdfs:label {literal(label)}@en .")
        for pid, value in says:
            name = f"s:{qid}-{pid}-{value}"
            lines += [f"wd:{qid} p:{pid} {name} .", f"{name} wikibase:rank wikibase:NormalRank ; ps:{pid} wd:{value} ."]
        self.delete(qid)
        return self._do("INSERT DATA { " + " ".join(lines) + " }")

    def name(self, qid: str, label: str) -> LivingWiki:
        """A label, without a revision that we would see."""
        return self._do(
            f"DELETE WHERE {{ wd:{qid} rdfs:label ?l }}", f"INSERT DATA {{ wd:{qid} rdfs:label {literal(label)}@en }}"
        )

    def delete(self, qid: str) -> LivingWiki:
        """Nothing of the item is left."""
        return self._do(
            f'DELETE {{ ?s ?p ?o }} WHERE {{ wd:{qid} ?x ?s . ?s ?p ?o . FILTER(STRSTARTS(STR(?s), "{STATEMENT}")) }}',
            f"DELETE WHERE {{ wd:{qid} ?p ?o }}",
        )

    def merge(self, qid: str, target: str) -> LivingWiki:
        """The item redirects to another."""
        self.delete(qid)
        return self._do(f"INSERT DATA {{ wd:{qid} <http://www.w3.org/2002/07/owl#sameAs> wd:{target} }}")

    def _do(self, *updates: str) -> LivingWiki:
        self._pieces += updates
        return self

    def flush(self) -> LivingWiki:
        """Apply all edits since the last call, at once."""
        if self._pieces:
            self.update(HEAD + " ;\n".join(self._pieces))
            self._pieces = []
        return self


def in_process() -> tuple[LivingWiki, Callable[..., Callable[..., WikidataSource]]]:
    """A wiki, and what makes a stand-in for ``Runtime.open_source`` over it."""
    store = ox.Store()

    def opener(relations: Iterable[Relation], **options: object) -> Callable[..., WikidataSource]:
        watched = list(relations)
        return lambda **_: WikidataSource(StoreEngine(store), watched, **options)  # type: ignore[arg-type]

    return LivingWiki(store.update), opener


def over_http(address: str) -> LivingWiki:
    """A wiki in an Oxigraph server, whose query address is given."""
    target = address.replace("/query", "/update")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def update(text: str) -> None:
        request = urllib.request.Request(
            target, text.encode(), {"Content-Type": "application/sparql-update"}, method="POST"
        )
        with opener.open(request, timeout=60):
            pass

    return LivingWiki(update)
