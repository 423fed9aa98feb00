"""Wikidata itself instead of a copy of it: items by the Action API (``wbgetentities``), as a second opinion.

Claims become the rows that a SPARQL engine would give, so that statements and current values are read by the same code.
Values carry no labels of other items: opinions are compared by ids.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlencode
from urllib.request import Request

from sources import labels
from sources.client import DEFAULT_LIMITS, Client, Limits, Observer, retry_after, silent_observer
from sources.engine import LANG_STRING, XSD, XSD_STRING, Row, Term, TermKind
from sources.errors import BadAnswer, BadQuery, Throttled
from sources.queries import ENTITY, STATEMENT, WIKIBASE
from sources.resolver import Resolution, resolve
from sources.statements import Statement, fold, parse_time
from sources.vocabulary import Observation, Outcome, require_qid

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import datetime
    from pathlib import Path

    from sources.catalogue import Relation
    from sources.transport import Reply

IDS_AT_ONCE = 50
"""As many as the API answers for clients without special rights."""
MAXLAG_SECONDS = 5
_QUALIFIERS = {"P580": "start", "P582": "end", "P585": "point", "P1366": "successor"}
_BUSY = frozenset({"maxlag", "ratelimited", "readonly"})
_NO_RESOLUTION = Resolution(Outcome.NONE, (), "no statement", "")


class ActionApi:
    """Reads items from a MediaWiki with Wikibase.

    Args:
        client: of the address of its ``api.php``.
        relations: the properties to read.
        languages: of labels and texts, in the order of preference.

    """

    def __init__(self, client: Client, relations: Sequence[Relation], languages: Sequence[str]) -> None:
        self._client = client
        self._relations = {relation.pid: relation for relation in relations}
        self._languages = tuple(languages)

    @property
    def name(self) -> str:
        """Its address."""
        return self._client.url

    def observe(self, qids: Sequence[str], now: datetime) -> list[Observation]:
        """Read items; missing and redirected ones have no observations.

        Args:
            qids: the items.
            now: the time at which starts and ends are judged, UTC.

        Raises:
            SourceError: as `Client.ask` says; Throttled also where the servers lag behind.

        """
        wanted = [require_qid(qid) for qid in dict.fromkeys(qids)]
        found: list[Observation] = []
        for start in range(0, len(wanted), IDS_AT_ONCE):
            part = wanted[start : start + IDS_AT_ONCE]
            for qid, entity in self._client.ask(partial(self._request, part), self._entities).items():
                if qid in part and _is_itself(qid, entity):
                    found += self._observations(qid, entity, now)
        return found

    def _request(self, qids: Sequence[str]) -> Request:
        parameters = {
            "action": "wbgetentities", "ids": "|".join(qids), "props": "info|labels|claims",
            "languages": "|".join(self._languages), "format": "json", "maxlag": str(MAXLAG_SECONDS),
        }  # fmt: skip
        headers = {"User-Agent": self._client.user_agent, "Accept": "application/json"}
        return Request(f"{self._client.url}?{urlencode(parameters)}", headers=headers)  # noqa: S310 - http(s), checked

    def _entities(self, reply: Reply) -> Mapping[str, Any]:
        document = cast("Any", self._client.document(reply, frozenset({"application/json"})))
        try:
            if "error" in document:
                code, info = document["error"]["code"], document["error"].get("info", "")
                if code in _BUSY:
                    wait = retry_after(reply)
                    raise Throttled(f"{self._client.host} asks to wait ({code}): pull less often", wait)
                raise BadQuery(f"{self._client.host} refuses ({code}: {info!a:.120}): check the address and the ids")
            entities: Mapping[str, Any] = document["entities"]
            for entity in entities.values():
                entity.get("id")
        except (KeyError, TypeError, AttributeError) as error:
            raise BadAnswer(
                f"{self._client.host} sent JSON without entities ({error!r:.120}): set second_opinion to an api.php"
            ) from error
        return entities

    def _observations(self, qid: str, entity: Mapping[str, Any], now: datetime) -> Iterator[Observation]:
        try:
            slots = fold(_rows(qid, entity, tuple(self._relations)))
            revision, modified = int(entity["lastrevid"]), parse_time(entity["modified"])
            name = self._name(entity)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BadAnswer(
                f"{self._client.host} describes {qid} in an unknown shape ({error!r:.120}): check the address"
            ) from error
        if modified is None:
            raise BadAnswer(f"{self._client.host} says of {qid} no time of its last change: check the address")
        for pid, relation in self._relations.items():
            resolution = self._resolve(slots.get((qid, pid), ()), relation, now)
            yield Observation(
                qid=qid, subject_label=name, pid=pid, outcome=resolution.outcome, values=resolution.values,
                reason=resolution.reason, revision=revision, modified=modified, statement=resolution.statement,
            )  # fmt: skip

    def _resolve(self, statements: Sequence[Statement], relation: Relation, now: datetime) -> Resolution:
        if not statements:
            return _NO_RESOLUTION
        return resolve(statements, multi_valued=relation.multi_valued, now=now, languages=self._languages)

    def _name(self, entity: Mapping[str, Any]) -> str:
        """The item's label, empty where none can stand in a prompt."""
        known = entity.get("labels") or {}
        texts = [known[tag]["value"] for tag in self._languages if tag in known]
        return next((text for text in texts if labels.fault(text, self._languages) is None), "")


def open_action_api(
    url: str,
    relations: Sequence[Relation],
    *,
    user_agent: str,
    timeout_seconds: float = 65.0,
    languages: Sequence[str] = ("en", "mul"),
    limits: Limits = DEFAULT_LIMITS,
    observer: Observer = silent_observer,
    turnstile: Path | None = None,
) -> ActionApi:
    """Open an ``api.php`` for second opinions; nothing is sent before it is asked.

    Args:
        url: its address, ``https://www.wikidata.org/w/api.php``.
        relations: the properties to read.
        user_agent: ``name/version (url; mail)``.
        timeout_seconds: bound on one attempt at a request.
        languages: of labels and texts.
        limits: bounds on answers and on trying again.
        observer: called after every attempt with its outcome and its seconds.
        turnstile: directory of lock files by which processes take turns.

    Raises:
        SourceError: the settings cannot work.

    """
    client = Client(
        url, user_agent=user_agent, timeout_seconds=timeout_seconds, limits=limits, observer=observer,
        turnstile=turnstile,
    )  # fmt: skip
    return ActionApi(client, relations, languages)


def _is_itself(qid: str, entity: Mapping[str, Any]) -> bool:
    """Whether this is the item that was asked for: neither missing nor what it was merged into."""
    return "missing" not in entity and "redirects" not in entity and entity.get("id") == qid


def _rows(qid: str, entity: Mapping[str, Any], pids: Sequence[str]) -> Iterator[Row]:
    """The rows of `queries.statements` about one item, one for each value of a qualifier."""
    # PHP writes an empty mapping as a list.
    claims = entity.get("claims") or {}
    for pid in pids:
        for claim in claims.get(pid, ()):
            name = claim["id"].replace("$", "-", 1)
            row = {
                "item": Term(TermKind.IRI, ENTITY + qid),
                "property": Term(TermKind.LITERAL, pid, XSD_STRING),
                "statement": Term(TermKind.IRI, STATEMENT + name),
                "rank": Term(TermKind.IRI, f"{WIKIBASE}{claim['rank'].capitalize()}Rank"),
            }
            value = _term(claim["mainsnak"])
            if value is not None:
                row["value"] = value
            yield row
            for of, variable in _QUALIFIERS.items():
                for snak in (claim.get("qualifiers") or {}).get(of, ()):
                    qualifier = _term(snak)
                    if qualifier is not None:
                        yield row | {variable: qualifier}


def _term(snak: Mapping[str, Any]) -> Term | None:
    """A snak's value as in Wikidata's RDF; None where it says "no value"."""
    if snak["snaktype"] == "novalue":
        return None
    if snak["snaktype"] == "somevalue":
        return Term(TermKind.BNODE, "somevalue")
    kind, value = snak["datavalue"]["type"], snak["datavalue"]["value"]
    match kind:
        case "wikibase-entityid":
            return Term(TermKind.IRI, ENTITY + value["id"])
        case "time":
            return Term(TermKind.LITERAL, _moment(value["time"]), XSD + "dateTime")
        case "quantity":
            return Term(TermKind.LITERAL, value["amount"], XSD + "decimal")
        case "monolingualtext":
            return Term(TermKind.LITERAL, value["text"], LANG_STRING, value["language"].lower())
        case "string":
            return Term(TermKind.LITERAL, value, XSD_STRING)
        case _:
            return Term(TermKind.LITERAL, str(value), XSD_STRING)


def _moment(text: str) -> str:
    """``+1952-00-00T00:00:00Z`` as RDF has it: no plus, the first of what is unknown, and the year 0 for 1 BC.

    Dates of the Julian calendar stay as they are; RDF has them converted, so there opinions may differ by days.
    """
    sign, rest = text[0], text[1:]
    year, month, day = rest.split("T")[0].split("-")
    number = int(year) if sign == "+" else 1 - int(year)
    era = "-" if number < 0 else ""
    return f"{era}{abs(number):04d}-{max(int(month), 1):02d}-{max(int(day), 1):02d}T{rest.split('T')[1]}"
