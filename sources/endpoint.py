"""An engine behind HTTP: any SPARQL 1.1 endpoint, and a name for everything that can go wrong there."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import stamina
from SPARQLWrapper import JSON, POST, SELECT, SPARQLWrapper

from sources.engine import LANG_STRING, XSD_STRING, Row, Term, TermKind
from sources.errors import (
    AnswerTooLarge,
    BadAnswer,
    BadQuery,
    Banned,
    QueryTimeout,
    SourceDown,
    SourceError,
    Throttled,
)
from sources.transport import Reply, exchange

if TYPE_CHECKING:
    from sources.queries import Query

ANSWER_TYPES = frozenset({"application/sparql-results+json", "application/json"})

TIMEOUT_MARKS = (
    "timeoutexception",  # Blazegraph: java.util.concurrent.TimeoutException, QueryTimeoutException
    "the sparql operation has been cancelled",  # Oxigraph
    "operation timed out",  # QLever
    "transaction timed out",  # Virtuoso
    "estimated execution time",  # Virtuoso, refusing beforehand
    "query timed out",  # Jena
)
"""Lower-case texts by which engines say that a query ran out of time, at whatever status."""

_TAIL_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds on an answer and on trying again.

    Attributes:
        max_bytes: of the body of an answer.
        max_rows: an answer with this many rows counts as cut short. Virtuoso cuts at 10,000 silently.
        attempts: how often one query is sent at most.
        retry_seconds: no new attempt after this long.
        max_retry_after: longest wait, seconds, that is sat out here. If the endpoint asks for more,
            the caller gets `Throttled` at once: to come back sooner than told leads to a ban.

    """

    max_bytes: int = 64 * 1024 * 1024
    max_rows: int = 10_000
    attempts: int = 4
    retry_seconds: float = 180.0
    max_retry_after: float = 90.0


DEFAULT_LIMITS = Limits()


class EndpointEngine:
    """Answers SPARQL over HTTP, one query at a time.

    Args:
        url: address of the SPARQL endpoint, http or https.
        user_agent: ``name/version (url; mail)``, as Wikimedia's policy asks.
        timeout_seconds: bound on one attempt at a query, from connecting to the last byte.
        limits: bounds on the answer and on trying again.

    Raises:
        SourceError: the settings cannot work.

    """

    def __init__(self, url: str, *, user_agent: str, timeout_seconds: float, limits: Limits = DEFAULT_LIMITS) -> None:
        self._host = _checked_host(url)
        if not user_agent.strip() or not user_agent.isascii() or not user_agent.isprintable():
            raise SourceError(
                f"the user agent {user_agent!r} is empty or not ASCII: set it to `name/version (url; mail)`"
            )
        bounds = (timeout_seconds, limits.max_bytes, limits.max_rows, limits.attempts, limits.retry_seconds)
        if min(bounds) <= 0:
            raise SourceError(f"timeout and limits for {self._host} must be positive: correct the settings")
        self._url = url
        self._user_agent = user_agent
        self._seconds = timeout_seconds
        self._limits = limits

    @property
    def name(self) -> str:
        """The endpoint's address."""
        return self._url

    def select(self, query: Query) -> list[Row]:
        """Give all solutions of ``query``; what is likely to pass is tried again within the limits.

        Raises:
            Throttled: still throttled after all attempts, or asked to wait for too long.
            Banned: the endpoint refuses this client.
            QueryTimeout: the query took too long.
            BadQuery: the endpoint does not accept the query.
            SourceDown: still unreachable or broken after all attempts.
            BadAnswer: the answer is not one to the query.
            AnswerTooLarge: the answer is over a bound.

        """
        for attempt in stamina.retry_context(
            on=self._patience,
            attempts=self._limits.attempts,
            timeout=self._limits.retry_seconds,
            wait_initial=1.0,
            wait_max=30.0,
        ):
            with attempt:
                return self._ask(query)
        raise AssertionError("stamina re-raises the last error")

    def _patience(self, error: Exception) -> bool | float:
        """Whether to try again after ``error``; a number says after how many seconds."""
        if isinstance(error, Throttled) and error.retry_after is not None:
            return error.retry_after if error.retry_after <= self._limits.max_retry_after else False
        return isinstance(error, Throttled | SourceDown)

    def _ask(self, query: Query) -> list[Row]:
        wrapper = SPARQLWrapper(self._url, agent=self._user_agent, returnFormat=JSON)
        wrapper.setMethod(POST)
        wrapper.setOnlyConneg(True)
        wrapper.setQuery(query.text)
        # SPARQLWrapper guesses the type from the text and can take a comment for an update.
        wrapper.queryType = SELECT
        # SPARQLWrapper composes the request; its own way of sending bounds neither time nor size.
        request = wrapper._createRequest()
        reply = exchange(request, self._seconds, self._limits.max_bytes)
        if reply.status != 200:
            raise self._refusal(reply)
        return self._rows(query, self._document(reply))

    def _refusal(self, reply: Reply) -> SourceError:
        host, status = self._host, reply.status
        detail = _excerpt(reply.body)
        if status == 429 and not _is_qlever_timeout(reply.body):
            wait = _retry_after(reply)
            asked = "no time given" if wait is None else f"wait {wait:g} s"
            return Throttled(f"{host} throttles this client ({asked}): pull less often", wait)
        if status in {408, 429, 504} or _tells_timeout(reply.body):
            return QueryTimeout(f"{host} ran out of time (HTTP {status}): ask for less per query")
        if status in {401, 403}:
            return Banned(f"{host} refuses this client (HTTP {status}: {detail}): check user agent and rate")
        if 300 <= status < 400:
            target = _excerpt(reply.headers.get("Location", "an unnamed place").encode())
            return BadAnswer(f"{host} redirects to {target}: set the endpoint's address to that")
        if status >= 500:
            return SourceDown(f"{host} is in trouble (HTTP {status}: {detail}): try again later")
        if status in {400, 413, 414}:
            return BadQuery(f"{host} rejects the query (HTTP {status}: {detail}): check the languages and ids")
        return BadAnswer(f"{host} answered HTTP {status} ({detail}): check that this is a SPARQL endpoint")

    def _document(self, reply: Reply) -> Any:
        """Parse the JSON of a 200 answer."""
        host = self._host
        if not reply.complete:
            raise self._cut_short(reply) or SourceDown(
                f"{host} broke off after {len(reply.body)} bytes: check the network and any proxy"
            )
        kind = reply.headers.get_content_type()
        coding = reply.headers.get("Content-Encoding", "identity")
        if kind not in ANSWER_TYPES or coding.lower() != "identity":
            raise BadAnswer(f"{host} answered with {kind}, coding {coding}, not SPARQL JSON: check address and proxy")
        try:
            return json.loads(reply.body)
        except (ValueError, RecursionError) as error:
            raise self._cut_short(reply) or BadAnswer(
                f"{host} sent malformed JSON ({error}): ask for less per query"
            ) from error

    def _cut_short(self, reply: Reply) -> QueryTimeout | None:
        """Find a timeout in a 200 answer: the status is long sent, so engines complain in the body."""
        if not _tells_timeout(reply.body):
            return None
        return QueryTimeout(f"{self._host} ran out of time in its answer: ask for less per query")

    def _rows(self, query: Query, document: Any) -> list[Row]:
        try:
            names = document["head"]["vars"]
            bindings = document["results"]["bindings"]
            if sorted(names) != sorted(query.variables):
                raise BadAnswer(
                    f"{self._host} answered with the variables {names!r:.200}, not those asked for: "
                    "check any proxy or cache in between"
                )
            if len(bindings) >= self._limits.max_rows:
                raise AnswerTooLarge(
                    f"{self._host} answered with {len(bindings)} rows, perhaps cut short: ask for less"
                )
            known = frozenset(names)
            return [{name: _term(term) for name, term in binding.items() if name in known} for binding in bindings]
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise BadAnswer(
                f"{self._host} sent JSON that is no SPARQL result ({error!r:.200}): check the address"
            ) from error


def _checked_host(url: str) -> str:
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").encode("idna").decode()
        port = parts.port
    except ValueError as error:
        raise SourceError(f"the endpoint address {url!r} is malformed ({error}): correct it") from error
    if parts.scheme not in {"http", "https"} or not host:
        raise SourceError(f"the endpoint address {url!r} is no http(s) address: correct it")
    if parts.username is not None:
        raise SourceError(f"the endpoint address at {host} carries credentials: leave them out")
    return host if port is None else f"{host}:{port}"


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


def _retry_after(reply: Reply) -> float | None:
    """Read the seconds of a ``Retry-After`` header, which holds a number or a date."""
    text = (reply.headers.get("Retry-After") or "").strip()
    if text.isdecimal():
        return float(text)
    try:
        until = parsedate_to_datetime(text)
    except ValueError:
        return None
    if until.tzinfo is None:
        until = until.replace(tzinfo=UTC)
    return max(0.0, (until - datetime.now(UTC)).total_seconds())


def _is_qlever_timeout(body: bytes) -> bool:
    """Tell a timeout of QLever, which comes as status 429 with a JSON object that has an ``exception``."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return False
    return isinstance(document, dict) and "exception" in document


def _tells_timeout(body: bytes) -> bool:
    text = body[-_TAIL_BYTES:].decode("utf-8", "replace").lower()
    return any(mark in text for mark in TIMEOUT_MARKS)


def _excerpt(body: bytes) -> str:
    """Show the start of ``body`` on one printable line."""
    text = " ".join(body[:400].decode("utf-8", "replace").split())
    return "".join(c if c.isprintable() else "?" for c in text)[:160] or "no text"
