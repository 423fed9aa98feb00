"""One HTTP request whose total time and size are bounded.

A socket timeout bounds one read, and a server that drips a byte now and then never exceeds it. So
the exchange runs in a thread of its own; when the deadline passes, the caller goes on and the
connection is shut down under the thread, which ends it. Redirects are not followed: a POST would
turn into a GET without the query.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sources.errors import AnswerTooLarge, QueryTimeout, SourceDown

if TYPE_CHECKING:
    from collections.abc import Callable
    from email.message import Message

CONNECT_SECONDS = 10.0
"""Patience with an address that does not answer at all: it is down, not slow."""

_PIECE_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP answer, whatever its status.

    Attributes:
        status: the HTTP status.
        headers: case-insensitive.
        body: what arrived.
        complete: False if the connection ended before the announced end of the body.

    """

    status: int
    headers: Message
    body: bytes
    complete: bool


class _Line:
    """Opens connections and remembers their sockets, so that another thread can cut them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._cut = False

    def open(self, connection: http.client.HTTPConnection, connect: Callable[[], None], seconds: float) -> None:
        """Call ``connect``, with less patience than the ``seconds`` that later reads get."""
        connection.timeout = min(CONNECT_SECONDS, seconds / 2)
        connect()
        connection.sock.settimeout(seconds)
        with self._lock:
            if self._cut:
                raise TimeoutError("connected after the deadline")
            self._sockets.append(connection.sock)

    def cut(self) -> None:
        with self._lock:
            self._cut = True
            for connected in self._sockets:
                with suppress(OSError):
                    # Under TLS, not through it: SSLSocket.shutdown is no call for a second thread.
                    socket.socket.shutdown(connected, socket.SHUT_RDWR)


def exchange(request: urllib.request.Request, seconds: float, max_bytes: int) -> Reply:
    """Send ``request`` and read the answer.

    Args:
        request: an ``http`` or ``https`` request.
        seconds: for everything: connecting, waiting and reading.
        max_bytes: bound on the body.

    Raises:
        QueryTimeout: the time ran out.
        SourceDown: no connection, or it broke.
        AnswerTooLarge: the body is over the bound.

    """
    line = _Line()
    results: list[Reply | Exception] = []

    def work() -> None:
        try:
            results.append(_exchange(request, seconds, max_bytes, line))
        except Exception as error:  # noqa: BLE001 - carried to the calling thread and raised there
            results.append(error)

    # A daemon thread: name resolution cannot be interrupted and must not hold up the process's end.
    worker = threading.Thread(target=work, name="sparql-exchange", daemon=True)
    worker.start()
    worker.join(seconds)
    if not results:
        line.cut()
        raise QueryTimeout(_late(request, seconds))
    match results[0]:
        case Reply() as reply:
            return reply
        case TimeoutError() as error:
            raise QueryTimeout(_late(request, seconds)) from error
        case (OSError() | http.client.HTTPException()) as error:
            raise SourceDown(_broken(request, error)) from error
        case error:
            raise error


def _exchange(request: urllib.request.Request, seconds: float, max_bytes: int, line: _Line) -> Reply:
    class Plain(http.client.HTTPConnection):
        def connect(self) -> None:
            line.open(self, super().connect, seconds)

    class Tls(http.client.HTTPSConnection):
        def connect(self) -> None:
            line.open(self, super().connect, seconds)

    class PlainHandler(urllib.request.HTTPHandler):
        def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(Plain, req)

    class TlsHandler(urllib.request.HTTPSHandler):
        def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(Tls, req, context=ssl.create_default_context())

    opener = urllib.request.OpenerDirector()
    # No redirect handler and no error handler: every status comes back as an answer.
    for handler in (urllib.request.ProxyHandler(), PlainHandler(), TlsHandler()):
        opener.add_handler(handler)
    try:
        response: Any = opener.open(request, timeout=seconds)
    except urllib.error.URLError as error:
        # Raised while connecting or sending, so a timeout in here means that nobody listens.
        raise SourceDown(_broken(request, error)) from error
    body = bytearray()
    with response:
        try:
            while piece := response.read(_PIECE_BYTES):
                body += piece
                if len(body) > max_bytes:
                    raise AnswerTooLarge(
                        f"{request.host} answered with more than {max_bytes} bytes: ask for less per query"
                    )
            # http.client takes an end within the head for the end of the head. Then no body follows,
            # and no length that would have announced that.
            complete = bool(body) if response.length is None else response.length == 0
        except http.client.IncompleteRead as error:
            body += error.partial
            complete = False
        return Reply(response.status, response.headers, bytes(body), complete)


def _late(request: urllib.request.Request, seconds: float) -> str:
    return f"{request.host} gave no whole answer in {seconds:g} s: raise the timeout or ask for less"


def _broken(request: urllib.request.Request, error: Exception) -> str:
    cause = " ".join(str(error).split()) or type(error).__name__
    return f"{request.host} cannot be reached or broke off ({cause}): check the address and the network"
