"""An engine behind HTTP: any SPARQL 1.1 endpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from SPARQLWrapper import JSON, POST, SELECT, SPARQLWrapper

from sources.client import DEFAULT_LIMITS, Client, Limits, Observer, silent_observer
from sources.engine import LANG_STRING, XSD_STRING, Row, Term, TermKind
from sources.errors import AnswerTooLarge, BadAnswer

if TYPE_CHECKING:
    from pathlib import Path
    from urllib.request import Request

    from sources.queries import Query
    from sources.transport import Reply

ANSWER_TYPES = frozenset({"application/sparql-results+json", "application/json"})


class EndpointEngine:
    """Answers SPARQL over HTTP, one query at a time.

    Args:
        url: address of the SPARQL endpoint, http or https.
        user_agent: ``name/version (url; mail)``, as Wikimedia's policy asks.
        timeout_seconds: bound on one attempt at a query, from connecting to the last byte.
        limits: bounds on the answer and on trying again.
        observer: called after every attempt.
        turnstile: directory of lock files by which processes ask one query at a time.

    Raises:
        SourceError: the settings cannot work.

    """

    def __init__(
        self,
        url: str,
        *,
        user_agent: str,
        timeout_seconds: float,
        limits: Limits = DEFAULT_LIMITS,
        observer: Observer = silent_observer,
        turnstile: Path | None = None,
    ) -> None:
        self._client = Client(
            url,
            user_agent=user_agent,
            timeout_seconds=timeout_seconds,
            limits=limits,
            observer=observer,
            turnstile=turnstile,
        )
        self._limits = limits

    @property
    def name(self) -> str:
        """The endpoint's address."""
        return self._client.url

    def select(self, query: Query) -> list[Row]:
        """Give all solutions of ``query``; what is likely to pass is tried again within the limits.

        Raises:
            SourceError: as `Client.ask` says.

        """
        return self._client.ask(lambda: self._request(query), lambda reply: self._rows(query, reply))

    def _request(self, query: Query) -> Request:
        wrapper = SPARQLWrapper(self._client.url, agent=self._client.user_agent, returnFormat=JSON)
        wrapper.setMethod(POST)
        wrapper.setOnlyConneg(True)
        wrapper.setQuery(query.text)
        # SPARQLWrapper guesses the type from the text and can take a comment for an update.
        wrapper.queryType = SELECT
        # SPARQLWrapper composes the request; its own way of sending bounds neither time nor size.
        request: Request = wrapper._createRequest()
        return request

    def _rows(self, query: Query, reply: Reply) -> list[Row]:
        host, document = self._client.host, cast("Any", self._client.document(reply, ANSWER_TYPES))
        try:
            names = document["head"]["vars"]
            bindings = document["results"]["bindings"]
            if sorted(names) != sorted(query.variables):
                raise BadAnswer(
                    f"{host} answered with the variables {names!r:.200}, not those asked for: "
                    "check any proxy or cache in between"
                )
            if len(bindings) >= self._limits.max_rows:
                raise AnswerTooLarge(f"{host} answered with {len(bindings)} rows, perhaps cut short: ask for less")
            known = frozenset(names)
            return [{name: _term(term) for name, term in binding.items() if name in known} for binding in bindings]
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise BadAnswer(f"{host} sent JSON that is no SPARQL result ({error!r:.200}): check the address") from error


def _term(term: dict[str, str]) -> Term:
    value = term["value"]
    if not isinstance(value, str):
        raise TypeError(f"value {value!r}")
    match term["type"]:
        case "uri":
            return Term(TermKind.IRI, value)
        case "bnode":
            return Term(TermKind.BNODE, value)
        case "literal" | "typed-literal":
            language = term.get("xml:lang", "").lower()
            implied = LANG_STRING if language else XSD_STRING
            return Term(TermKind.LITERAL, value, term.get("datatype", implied), language)
        case other:
            raise TypeError(f"term of type {other!r}")
