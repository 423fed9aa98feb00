"""HTTP with manners: one request at a time per host, waits as told, and a name for every refusal."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, TypeVar

import stamina

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
from sources.identity import check_agent, checked_host
from sources.transport import Reply, exchange
from sources.turnstile import Turnstile

if TYPE_CHECKING:
    from pathlib import Path
    from urllib.request import Request

Answer = TypeVar("Answer")

Observer = Callable[[str, float], None]
"""Told after every request how it ended (a value of `OUTCOMES`, or ``ok``) and how many seconds it took."""

OUTCOMES: dict[type[SourceError], str] = {
    Throttled: "throttled",
    Banned: "banned",
    QueryTimeout: "timeout",
    BadQuery: "bad_query",
    SourceDown: "down",
    BadAnswer: "bad_answer",
    AnswerTooLarge: "too_large",
}

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
_LONGEST_REST = 30 * 86_400.0
"""Seconds; a longer ``Retry-After`` is a mistake, and would be none that a clock can hold."""
_JITTER_SECONDS = 1.0


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
        turn_seconds: longest wait for other processes that ask the same host.

    """

    max_bytes: int = 64 * 1024 * 1024
    max_rows: int = 10_000
    attempts: int = 4
    retry_seconds: float = 180.0
    max_retry_after: float = 90.0
    turn_seconds: float = 600.0


DEFAULT_LIMITS = Limits()


def silent_observer(outcome: str, seconds: float) -> None:
    """Take note of nothing."""


class Client:
    """Sends requests to one address.

    Args:
        url: the address, http or https.
        user_agent: ``name/version (url; mail)``, as Wikimedia's policy asks; checked for public hosts.
        timeout_seconds: bound on one attempt, from connecting to the last byte.
        limits: bounds on the answer and on trying again.
        observer: called after every attempt.
        turnstile: directory of the lock files by which processes take turns; None: this client's requests only.

    Raises:
        SourceError: the settings cannot work.

    """

    def __init__(
        self,
        url: str,
        *,
        user_agent: str,
        timeout_seconds: float,
        limits: Limits,
        observer: Observer,
        turnstile: Path | None,
    ) -> None:
        self.host = checked_host(url)
        check_agent(user_agent, url)
        bounds = (timeout_seconds, limits.max_bytes, limits.max_rows, limits.attempts, limits.retry_seconds)
        if min(*bounds, limits.turn_seconds) <= 0:
            raise SourceError(f"timeout and limits for {self.host} must be positive: correct the settings")
        self.url = url
        self.user_agent = user_agent
        self._seconds = timeout_seconds
        self._limits = limits
        self._observer = observer
        self._turnstile = Turnstile(self.host, turnstile, limits.turn_seconds)

    def ask(self, request: Callable[[], Request], read: Callable[[Reply], Answer]) -> Answer:
        """Send a request and read the answer; what is likely to pass is tried again within the limits.

        Args:
            request: makes it, once per attempt.
            read: makes sense of an answer with status 200, or raises a `SourceError`.

        Raises:
            Throttled: still throttled after all attempts, or asked to wait for too long.
            Banned: the host refuses this client.
            QueryTimeout: the query took too long.
            BadQuery: the host does not accept the query.
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
            wait_jitter=_JITTER_SECONDS,
        ):
            with attempt, self._turnstile.turn():
                return self._observed(request(), read)
        raise AssertionError("stamina re-raises the last error")

    def _patience(self, error: Exception) -> bool | float:
        """Whether to try again after ``error``; a number says after how many seconds."""
        if isinstance(error, Throttled) and error.retry_after is not None:
            if error.retry_after > self._limits.max_retry_after:
                return False
            # Others were told the same: not all of us at once.
            return error.retry_after + random.uniform(0, _JITTER_SECONDS)  # noqa: S311
        return isinstance(error, Throttled | SourceDown)

    def _observed(self, request: Request, read: Callable[[Reply], Answer]) -> Answer:
        began = time.monotonic()
        outcome = "ok"
        try:
            reply = exchange(request, self._seconds, self._limits.max_bytes)
            if reply.status != 200:
                raise _refusal(self.host, reply)
            return read(reply)
        except SourceError as error:
            outcome = OUTCOMES[type(error)]
            raise
        finally:
            self._observer(outcome, time.monotonic() - began)

    def document(self, reply: Reply, types: frozenset[str]) -> object:
        """Parse the JSON of a 200 answer, which must be of one of these media types.

        Raises:
            QueryTimeout: the answer ends in the host's complaint about the time: the status was long sent by then.
            SourceDown: it breaks off.
            BadAnswer: it is no JSON.

        """
        if not reply.complete:
            raise self._cut_short(reply) or SourceDown(
                f"{self.host} broke off after {len(reply.body)} bytes: check the network and any proxy"
            )
        kind = reply.headers.get_content_type()
        coding = reply.headers.get("Content-Encoding", "identity")
        if kind not in types or coding.lower() != "identity":
            raise BadAnswer(
                f"{self.host} answered with {kind}, coding {_excerpt(coding.encode())}, not with "
                f"{min(types)}: check address and proxy"
            )
        try:
            return json.loads(reply.body)
        except (ValueError, RecursionError) as error:
            raise self._cut_short(reply) or BadAnswer(
                f"{self.host} sent malformed JSON ({error}): ask for less per query"
            ) from error

    def _cut_short(self, reply: Reply) -> QueryTimeout | None:
        if not _tells_timeout(reply.body):
            return None
        return QueryTimeout(f"{self.host} ran out of time in its answer: ask for less per query")


def _refusal(host: str, reply: Reply) -> SourceError:
    status, detail, wait = reply.status, _excerpt(reply.body), retry_after(reply)
    if status == 429 and not _is_qlever_timeout(reply.body):
        asked = "no time given" if wait is None else f"wait {wait:g} s"
        return Throttled(f"{host} throttles this client ({asked}): pull less often", wait)
    if status in {408, 429, 504} or _tells_timeout(reply.body):
        return QueryTimeout(f"{host} ran out of time (HTTP {status}): ask for less per query")
    if status in {401, 403}:
        text = f"{host} refuses this client (HTTP {status}: {detail}): check user agent and rate"
        return Banned(text) if wait is None else Banned(text, wait)
    if 300 <= status < 400:
        target = _excerpt(reply.headers.get("Location", "an unnamed place").encode())
        return BadAnswer(f"{host} redirects to {target}: set the endpoint's address to that")
    if status >= 500:
        return SourceDown(f"{host} is in trouble (HTTP {status}: {detail}): try again later")
    if status in {400, 413, 414}:
        return BadQuery(f"{host} rejects the query (HTTP {status}: {detail}): check the languages and ids")
    return BadAnswer(f"{host} answered HTTP {status} ({detail}): check the endpoint's address")


def retry_after(reply: Reply) -> float | None:
    """Read the seconds of a ``Retry-After`` header, which holds a number or a date."""
    text = (reply.headers.get("Retry-After") or "").strip()
    if text.isdecimal():
        return min(float(text), _LONGEST_REST)
    try:
        until = parsedate_to_datetime(text)
    except ValueError:
        return None
    if until.tzinfo is None:
        until = until.replace(tzinfo=UTC)
    return min(max(0.0, (until - datetime.now(UTC)).total_seconds()), _LONGEST_REST)


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
