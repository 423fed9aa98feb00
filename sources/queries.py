"""The SPARQL texts.

Plain SPARQL 1.1 that gives the same rows on Oxigraph, Blazegraph, QLever, Jena and Virtuoso: no
label service, no hints, constant predicates, order only by time and revision. Ids and language
tags are validated before they enter a text; everything else is a constant of this module.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC
from enum import StrEnum
from typing import TYPE_CHECKING

from sources.vocabulary import require_pid, require_qid

if TYPE_CHECKING:
    from datetime import datetime

    from sources.vocabulary import Cursor

ENTITY = "http://www.wikidata.org/entity/"
STATEMENT = ENTITY + "statement/"
GENID = "http://www.wikidata.org/.well-known/genid/"
WIKIBASE = "http://wikiba.se/ontology#"

_PREFIXES = f"""\
PREFIX wd: <{ENTITY}>
PREFIX p: <http://www.wikidata.org/prop/>
PREFIX ps: <http://www.wikidata.org/prop/statement/>
PREFIX psv: <http://www.wikidata.org/prop/statement/value/>
PREFIX pq: <http://www.wikidata.org/prop/qualifier/>
PREFIX wdno: <http://www.wikidata.org/prop/novalue/>
PREFIX wikibase: <{WIKIBASE}>
PREFIX schema: <http://schema.org/>
PREFIX rdfs: <http://www.w3.org/2000/01/rdf-schema#>
PREFIX skos: <http://www.w3.org/2004/02/skos/core#>
PREFIX owl: <http://www.w3.org/2002/07/owl#>
PREFIX xsd: <http://www.w3.org/2001/XMLSchema#>
"""

_LANGUAGE = re.compile(r"[a-z]{2,8}(-[a-z0-9]{1,8})*", re.ASCII)


class Stamps(StrEnum):
    """Where an item's ``schema:dateModified``, ``schema:version`` and ``wikibase:sitelinks`` sit."""

    ITEM = "item"
    """On ``wd:Q...``, as at the Wikidata Query Service."""
    DOCUMENT = "document"
    """On the ``wdata:Q...`` that is ``schema:about wd:Q...``, as in Wikidata's raw dumps."""


_STAMPED = {
    Stamps.ITEM: "?item schema:dateModified ?modified ; schema:version ?revision .",
    Stamps.DOCUMENT: "?page schema:about ?item ; schema:dateModified ?modified ; schema:version ?revision .",
}
_LINKED = {
    Stamps.ITEM: "?item wikibase:sitelinks ?sitelinks",
    Stamps.DOCUMENT: "?page schema:about ?item ; wikibase:sitelinks ?sitelinks",
}


Watch = Mapping[str, Mapping[str, Sequence[str]]]
"""The properties to watch; and for each the items that it is watched for, as values of further properties of which an
item must have one each. Without such values it is watched for all items."""


@dataclass(frozen=True, slots=True)
class Query:
    """A SELECT query and the variables that its answer must have."""

    text: str
    variables: tuple[str, ...]


def require_language(tag: str) -> str:
    """Return ``tag`` if it is a lower-case language tag.

    Raises:
        ValueError: it is not.

    """
    if not _LANGUAGE.fullmatch(tag):
        raise ValueError(f"not a lower-case language tag such as en or pt-br: {tag!r}")
    return tag


def _select(variables: str, body: str, *, distinct: bool = False) -> Query:
    names = tuple(variables.split())
    head = "SELECT DISTINCT" if distinct else "SELECT"
    projection = " ".join("?" + name for name in names)
    return Query(f"{_PREFIXES}{head} {projection} WHERE {{\n{body}", names)


def _moment(moment: datetime) -> str:
    text = moment.astimezone(UTC).isoformat().replace("+00:00", "Z")
    return f'"{text}"^^xsd:dateTime'


def _items(qids: Sequence[str]) -> str:
    return " ".join("wd:" + require_qid(qid) for qid in qids)


def replication_time() -> Query:
    """Ask up to when the data is complete: ``time``, possibly several.

    The three places are those of the Wikidata Query Service, of QLever and of raw dumps.
    """
    return _select(
        "time",
        """\
  { <http://www.wikidata.org> schema:dateModified ?time }
  UNION { wikibase:Dump wikibase:updatesCompleteUntil ?time }
  UNION { wikibase:Dump schema:dateModified ?time }
}
""",
        distinct=True,
    )


def discovery(watch: Watch, stamps: Stamps, after: Cursor | None, until: datetime, limit: int) -> Query:
    """Ask for items that carry a watched property, oldest modification first: ``item modified revision``.

    Args:
        watch: properties, at least one, and for which items.
        stamps: where the modification sits.
        after: only later modifications; None for all.
        until: no modification later than this.
        limit: rows of a page. Keyset paging: the next page is ``after`` the last row.

    """
    later = ""
    if after is not None:
        start = _moment(after.modified)
        # The first conjunct is redundant. It is what an engine can turn into a range scan.
        later = (
            f"  FILTER(?modified >= {start})\n"
            f"  FILTER(?modified > {start} || (?modified = {start} && ?revision > {after.revision:d}))\n"
        )
    branches = "\n  UNION\n".join(
        f"  {{ ?item p:{require_pid(pid)} ?statement{_kinds(kinds)} }}" for pid, kinds in watch.items()
    )
    return _select(
        "item modified revision",
        f"""\
  {_STAMPED[stamps]}
{later}  FILTER(?modified <= {_moment(until)})
{branches}
}} ORDER BY ?modified ?revision LIMIT {limit:d}
""",
        distinct=True,
    )


def _kinds(kinds: Mapping[str, Sequence[str]]) -> str:
    """Let an item through that has one of the values of each property."""
    return "".join(
        f" . ?item p:{require_pid(pid)} ?of{n} . ?of{n} ps:{pid} ?kind{n} ; wikibase:rank ?rank{n} ."
        f" FILTER(?rank{n} != wikibase:DeprecatedRank) VALUES ?kind{n} {{ {_items(qids)} }}"
        for n, (pid, qids) in enumerate(kinds.items())
    )


def kinds(qids: Sequence[str], pids: Sequence[str]) -> Query:
    """Ask for the values of some items that are not deprecated: ``item property kind``."""
    union = "\n  UNION\n".join(
        f'  {{ ?item p:{pid} ?statement . ?statement ps:{pid} ?kind . BIND("{pid}" AS ?property) }}'
        for pid in map(require_pid, pids)
    )
    return _select(
        "item property kind",
        f"""\
  VALUES ?item {{ {_items(qids)} }}
{union}
  ?statement wikibase:rank ?rank .
  FILTER(?rank != wikibase:DeprecatedRank)
}}
""",
        distinct=True,
    )


def standing(qids: Sequence[str], stamps: Stamps) -> Query:
    """Ask what became of some items: ``item modified revision`` if present, ``item target`` if merged into another."""
    return _select(
        "item modified revision target",
        f"""\
  VALUES ?item {{ {_items(qids)} }}
  {{ {_STAMPED[stamps]} }}
  UNION
  {{ ?item owl:sameAs ?target }}
}}
""",
        distinct=True,
    )


def statements(qids: Sequence[str], pids: Sequence[str], stamps: Stamps) -> Query:
    """Ask for all statements of some items, and in how many wikis each item has a page.

    The columns are ``item property statement rank value start end point successor sitelinks``. ``value`` is missing
    where the statement says "no value", ``sitelinks`` where the data does not count them. Several values of one
    qualifier give the cross product of rows.
    """
    branches = []
    for pid in map(require_pid, pids):
        claim, name = f"?item p:{pid} ?statement .", f'BIND("{pid}" AS ?property)'
        branches.append(f"  {{ {claim} ?statement ps:{pid} ?value . {name} }}")
        branches.append(f"  {{ {claim} ?statement a wdno:{pid} . {name} }}")
    union = "\n  UNION\n".join(branches)
    # Rank and qualifiers once, behind the union: within the branches Oxigraph takes ten times as long.
    return _select(
        "item property statement rank value start end point successor sitelinks",
        f"""\
  VALUES ?item {{ {_items(qids)} }}
{union}
  ?statement wikibase:rank ?rank .
  OPTIONAL {{ ?statement pq:P580 ?start }}
  OPTIONAL {{ ?statement pq:P582 ?end }}
  OPTIONAL {{ ?statement pq:P585 ?point }}
  OPTIONAL {{ ?statement pq:P1366 ?successor }}
  OPTIONAL {{ {_LINKED[stamps]} }}
}}
""",
    )


def precisions(qids: Sequence[str], pids: Sequence[str]) -> Query:
    """Ask how precise the times are that ``pids`` say of some items: ``item statement precision``."""
    union = "\n  UNION\n".join(
        f"  {{ ?item p:{pid} ?statement . ?statement psv:{pid} ?node }}" for pid in map(require_pid, pids)
    )
    return _select(
        "item statement precision",
        f"  VALUES ?item {{ {_items(qids)} }}\n{union}\n  ?node wikibase:timePrecision ?precision .\n}}\n",
        distinct=True,
    )


def labels(qids: Sequence[str], languages: Sequence[str]) -> Query:
    """Ask for labels of some items in some languages: ``item label``."""
    return _names("rdfs:label", qids, languages)


def aliases(qids: Sequence[str], languages: Sequence[str]) -> Query:
    """Ask for the other names of some items in some languages: ``item label``."""
    return _names("skos:altLabel", qids, languages)


def _names(predicate: str, qids: Sequence[str], languages: Sequence[str]) -> Query:
    wanted = " || ".join(f'LANG(?label) = "{require_language(tag)}"' for tag in languages)
    return _select(
        "item label",
        f"  VALUES ?item {{ {_items(qids)} }}\n  ?item {predicate} ?label .\n  FILTER({wanted})\n}}\n",
    )
