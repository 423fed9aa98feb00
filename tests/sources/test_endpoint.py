"""The endpoint engine against servers that misbehave."""

from __future__ import annotations

import contextlib
import gzip
import json
import shutil
import socket
import ssl
import subprocess
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from urllib.parse import parse_qs

import pytest
import stamina
from werkzeug import Response

from sources import (
    AnswerTooLarge,
    BadAnswer,
    BadQuery,
    Banned,
    Limits,
    QueryTimeout,
    SourceDown,
    SourceError,
    Throttled,
)
from sources.endpoint import EndpointEngine
from sources.engine import LANG_STRING, XSD, XSD_STRING, Term, TermKind
from sources.queries import Query

AGENT = "factsyncd-tests/0 (https://factsyncd.example; tests@factsyncd.example)"
# With a comment that SPARQLWrapper, left to itself, takes for an update.
QUERY = Query("PREFIX é: <http://a/> # LOAD x\nSELECT ?x WHERE { ?x ?y ?z }", ("x",))
JSON_TYPE = "application/sparql-results+json"
ONE_ROW = {"head": {"vars": ["x"]}, "results": {"bindings": [{"x": {"type": "uri", "value": "http://a"}}]}}
WDQS_TIMEOUT = (
    b'{"head":{"vars":["x"]},"results":{"bindings":[{"x":{"type":"uri","value":"http://a"}},'
    b"SPARQL-QUERY: queryStr=SELECT ...\njava.util.concurrent.TimeoutException\n\tat java.base/..."
)


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture(autouse=True)
def _no_waiting():
    """Retries happen, three of them, without the pauses between."""
    with stamina.set_testing(True, attempts=3):
        yield


@pytest.fixture
def engine(httpserver):
    def open_engine(url=None, timeout_seconds=10.0, **limits):
        return EndpointEngine(
            url or httpserver.url_for("/sparql"),
            user_agent=AGENT,
            timeout_seconds=timeout_seconds,
            limits=Limits(**limits),
        )

    return open_engine


def answer(httpserver, body=b"", status=200, content_type=JSON_TYPE, **headers):
    data = json.dumps(body) if isinstance(body, dict) else body
    httpserver.expect_request("/sparql").respond_with_data(
        data,
        status,
        {name.replace("_", "-"): value for name, value in headers.items()},
        content_type=content_type,
    )


def test_the_request_is_a_post_that_says_who_asks(httpserver, engine):
    answer(httpserver, ONE_ROW)
    assert engine().select(QUERY) == [{"x": Term(TermKind.IRI, "http://a")}]
    ((request, _),) = httpserver.log
    assert request.method == "POST"
    assert request.headers["User-Agent"] == AGENT
    assert "application/sparql-results+json" in request.headers["Accept"]
    assert parse_qs(request.get_data().decode()) == {"query": [QUERY.text]}


def test_every_kind_of_term(httpserver, engine):
    terms = [
        ({"type": "uri", "value": "http://a"}, Term(TermKind.IRI, "http://a")),
        ({"type": "bnode", "value": "b0"}, Term(TermKind.BNODE, "b0")),
        ({"type": "literal", "value": "é"}, Term(TermKind.LITERAL, "é", XSD_STRING)),
        (
            {"type": "literal", "value": "1", "datatype": XSD + "integer"},
            Term(TermKind.LITERAL, "1", XSD + "integer"),
        ),
        (
            {"type": "typed-literal", "value": "1", "datatype": XSD + "integer"},
            Term(TermKind.LITERAL, "1", XSD + "integer"),
        ),
        (
            {"type": "literal", "value": "x", "xml:lang": "pt-BR"},
            Term(TermKind.LITERAL, "x", LANG_STRING, "pt-br"),
        ),
    ]
    bindings = [{"x": given} for given, _ in terms]
    answer(httpserver, {"head": {"vars": ["x"]}, "results": {"bindings": [*bindings, {}]}})
    assert engine().select(QUERY) == [*({"x": expected} for _, expected in terms), {}]


@pytest.mark.parametrize(
    ("status", "body", "error", "attempts"),
    [
        (400, "syntax error at line 1", BadQuery, 1),
        (413, "", BadQuery, 1),
        (401, "", Banned, 1),
        (403, "You have been banned until tomorrow", Banned, 1),
        (404, "", BadAnswer, 1),
        (405, "", BadAnswer, 1),
        (408, "", QueryTimeout, 1),
        (429, "slow down", Throttled, 3),
        (429, '{"exception": "Operation timed out.", "status": "ERROR"}', QueryTimeout, 1),
        (500, "java.lang.NullPointerException", SourceDown, 3),
        (500, "com.bigdata.bop.engine.QueryTimeoutException: Query deadline is expired.", QueryTimeout, 1),
        (502, "", SourceDown, 3),
        (503, "", SourceDown, 3),
        (503, "Query timed out", QueryTimeout, 1),
        (504, "", QueryTimeout, 1),
        (301, "", BadAnswer, 1),
        (204, "", BadAnswer, 1),
    ],
)
def test_statuses(httpserver, engine, status, body, error, attempts):
    answer(httpserver, body, status, "text/plain", Location="https://elsewhere.example/\r\n x"[:26])
    with pytest.raises(SourceError) as caught:
        engine().select(QUERY)
    assert type(caught.value) is error
    assert len(httpserver.log) == attempts
    assert "localhost" in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_redirect_names_the_new_address(httpserver, engine):
    answer(httpserver, status=308, Location="https://elsewhere.example/sparql")
    with pytest.raises(BadAnswer, match=r"https://elsewhere\.example/sparql"):
        engine().select(QUERY)


@pytest.mark.parametrize(
    ("ahead", "low", "high"),
    [(7, 7, 7), (timedelta(hours=1), 3000, 3600), (-timedelta(hours=1), 0, 0)],
    ids=["seconds", "a date to come", "a date gone by"],
)
def test_retry_after(httpserver, engine, ahead, low, high):
    # The date is set here: collection may be long past by now.
    header = str(ahead) if isinstance(ahead, int) else format_datetime(datetime.now(UTC) + ahead, usegmt=True)
    answer(httpserver, status=429, Retry_After=header)
    with pytest.raises(Throttled) as caught:
        engine().select(QUERY)
    assert low <= caught.value.retry_after <= high
    # A wait over the bound is for the caller to sit out, not to be cut short here.
    assert len(httpserver.log) == (1 if low > Limits().max_retry_after else 3)


@pytest.mark.parametrize("header", [{}, {"Retry_After": "tomorrow"}])
def test_throttled_without_a_time(httpserver, engine, header):
    answer(httpserver, status=429, **header)
    with pytest.raises(Throttled) as caught:
        engine().select(QUERY)
    assert caught.value.retry_after is None


@pytest.mark.parametrize(
    ("header", "seconds"), [({}, 86_400), ({"Retry_After": "7200"}, 7200), ({"Retry_After": "9" * 400}, 30 * 86_400)]
)
def test_how_long_a_ban_lasts(httpserver, engine, header, seconds):
    answer(httpserver, b"banned", 403, "text/plain", **header)
    with pytest.raises(Banned) as caught:
        engine().select(QUERY)
    assert caught.value.retry_after == seconds


def test_pauses_between_attempts_are_scattered(httpserver, engine, monkeypatch):
    """So that those who failed together do not come back together."""
    stamina.set_testing(False)
    pauses = []
    monkeypatch.setattr("tenacity.nap.time.sleep", pauses.append)
    for header in ({}, {"Retry-After": "5"}, {}):
        httpserver.expect_ordered_request("/sparql").respond_with_data(status=429, headers=header)
    httpserver.expect_ordered_request("/sparql").respond_with_json(ONE_ROW)
    engine().select(QUERY)
    assert all(low < pause <= low + 1 for pause, low in zip(pauses, (1, 5, 4), strict=True))


@pytest.mark.parametrize(
    ("status", "body", "outcomes"),
    [
        (200, ONE_ROW, ["ok"]),
        (429, b"", ["throttled"] * 3),
        (403, b"", ["banned"]),
        (504, b"", ["timeout"]),
        (400, b"", ["bad_query"]),
        (503, b"", ["down"] * 3),
        (200, b"[]", ["bad_answer"]),
        (200, b" " * 2000, ["too_large"]),
    ],
)
def test_every_request_is_observed(httpserver, status, body, outcomes):
    seen = []
    answer(httpserver, body, status)
    engine = EndpointEngine(
        httpserver.url_for("/sparql"),
        user_agent=AGENT,
        timeout_seconds=10,
        limits=Limits(max_bytes=1000),
        observer=lambda outcome, seconds: seen.append((outcome, seconds)),
    )
    with contextlib.suppress(SourceError):
        engine.select(QUERY)
    assert [outcome for outcome, _ in seen] == outcomes
    assert all(0 < seconds < 10 for _, seconds in seen)


def test_retry_after_is_waited_out(httpserver, engine):
    stamina.set_testing(False)
    httpserver.expect_ordered_request("/sparql").respond_with_data(status=429, headers={"Retry-After": "1"})
    httpserver.expect_ordered_request("/sparql").respond_with_json(ONE_ROW)
    began = time.monotonic()
    assert len(engine().select(QUERY)) == 1
    assert time.monotonic() - began >= 1


def test_trouble_that_passes_is_not_seen(httpserver, engine):
    for status in (503, 429):
        httpserver.expect_ordered_request("/sparql").respond_with_data(status=status)
    httpserver.expect_ordered_request("/sparql").respond_with_json(ONE_ROW)
    assert len(engine().select(QUERY)) == 1


def test_attempts_are_bounded_by_the_limits(httpserver, engine):
    stamina.set_testing(False)
    answer(httpserver, status=429, Retry_After="0")
    with pytest.raises(Throttled):
        engine(attempts=2).select(QUERY)
    assert len(httpserver.log) == 2


@pytest.mark.parametrize(
    ("body", "content_type", "error"),
    [
        ("<html>maintenance</html>", "text/html", BadAnswer),
        (ONE_ROW, "application/sparql-results+xml", BadAnswer),
        (WDQS_TIMEOUT, JSON_TYPE, QueryTimeout),
        (WDQS_TIMEOUT[:70], JSON_TYPE, BadAnswer),
        (b"", JSON_TYPE, BadAnswer),
        (b"\xff\xfe\x00", JSON_TYPE, BadAnswer),
        (b"[" * 100_000, JSON_TYPE, BadAnswer),
        (b"[]", JSON_TYPE, BadAnswer),
        (b"null", JSON_TYPE, BadAnswer),
        ({"boolean": True, "head": {}}, JSON_TYPE, BadAnswer),
        ({"head": {"vars": ["x", "y"]}, "results": {"bindings": []}}, JSON_TYPE, BadAnswer),
        ({"head": {"vars": []}, "results": {"bindings": []}}, JSON_TYPE, BadAnswer),
        ({"head": {"vars": [["x"]]}, "results": {"bindings": []}}, JSON_TYPE, BadAnswer),
        ({"head": {"vars": ["x"]}, "results": {"bindings": None}}, JSON_TYPE, BadAnswer),
        ({"head": {"vars": ["x"]}, "results": {"bindings": ["a"]}}, JSON_TYPE, BadAnswer),
        ({"head": {"vars": ["x"]}, "results": {"bindings": [{"x": "a"}]}}, JSON_TYPE, BadAnswer),
        (
            {"head": {"vars": ["x"]}, "results": {"bindings": [{"x": {"type": "uri", "value": 3}}]}},
            JSON_TYPE,
            BadAnswer,
        ),
        (
            {"head": {"vars": ["x"]}, "results": {"bindings": [{"x": {"type": "triple", "value": "t"}}]}},
            JSON_TYPE,
            BadAnswer,
        ),
    ],
)
def test_answers_that_are_none(httpserver, engine, body, content_type, error):
    answer(httpserver, body, content_type=content_type)
    with pytest.raises(SourceError) as caught:
        engine().select(QUERY)
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_compression_that_nobody_asked_for(httpserver, engine):
    answer(httpserver, gzip.compress(json.dumps(ONE_ROW).encode()), Content_Encoding="gzip")
    with pytest.raises(BadAnswer, match="coding gzip"):
        engine().select(QUERY)


def test_too_many_bytes_or_rows(httpserver, engine):
    answer(httpserver, ONE_ROW)
    with pytest.raises(AnswerTooLarge, match="more than 20 bytes"):
        engine(max_bytes=20).select(QUERY)
    with pytest.raises(AnswerTooLarge, match="1 rows"):
        engine(max_rows=1).select(QUERY)


def read_request(connection):
    """Take the whole request: closing with part of it unread would reset the connection."""
    length = 0
    with connection.makefile("rb") as stream:
        while (line := stream.readline()).strip():
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        stream.read(length)


@contextlib.contextmanager
def raw_server(talk, tls=None):
    """Call ``talk(connection)`` for every connection, in threads; yields the address."""
    scheme = "http" if tls is None else "https"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threads = []

        def serve():
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                threads.append(threading.Thread(target=handle, args=(connection,), daemon=True))
                threads[-1].start()

        def handle(connection):
            with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
                stack.enter_context(connection)
                if tls is not None:
                    connection = stack.enter_context(tls.wrap_socket(connection, server_side=True))
                read_request(connection)
                talk(connection)

        acceptor = threading.Thread(target=serve, daemon=True)
        acceptor.start()
        yield f"{scheme}://127.0.0.1:{listener.getsockname()[1]}/sparql"
        listener.shutdown(socket.SHUT_RDWR)
    for thread in (acceptor, *threads):
        thread.join(10)
        assert not thread.is_alive(), "a connection was left open"


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/sparql-results+json\r\n"


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"HTTP/1.1 200",
        HEAD[:60],
        b"no http at all\r\n\r\n",
        HEAD + b'Content-Length: 500\r\n\r\n{"head": {"vars": ["x"]}',
        HEAD + b'Transfer-Encoding: chunked\r\n\r\n10\r\n{"head": {"va',
    ],
    ids=["at once", "in the status", "in a header", "nonsense", "in the body", "in a chunk"],
)
def test_a_connection_that_breaks_off(engine, sent):
    connections = []

    def talk(connection):
        connections.append(1)
        connection.sendall(sent)

    with raw_server(talk) as url, pytest.raises(SourceDown, match="check"):
        engine(url).select(QUERY)
    assert len(connections) == 3


def test_a_timeout_reported_in_a_body_that_breaks_off(engine):
    size = b"%x\r\n" % len(WDQS_TIMEOUT)
    with (
        raw_server(lambda c: c.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + size + WDQS_TIMEOUT)) as url,
        pytest.raises(QueryTimeout),
    ):
        engine(url).select(QUERY)


def drip(connection, text):
    for byte in text * 1000:
        connection.sendall(bytes([byte]))
        time.sleep(0.05)


@pytest.mark.parametrize(
    "talk",
    [
        lambda connection: drip(connection, b"HTTP/1.1 200 OK\r\nX-A: b\r\n"),
        lambda connection: (connection.sendall(HEAD + b"\r\n"), drip(connection, b" ")),
        lambda connection: connection.recv(1),
    ],
    ids=["dripping head", "dripping body", "silence"],
)
def test_the_deadline_holds_and_the_connection_is_closed(engine, talk):
    began = time.monotonic()
    with raw_server(talk) as url, pytest.raises(QueryTimeout, match="raise the timeout"):
        engine(url, timeout_seconds=0.5).select(QUERY)
    assert time.monotonic() - began < 8


def test_nobody_listens(engine):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(SourceDown, match=f"127.0.0.1:{port} cannot be reached"):
        engine(f"http://127.0.0.1:{port}/sparql").select(QUERY)


def test_a_plain_server_behind_https(httpserver, engine):
    with pytest.raises(SourceDown, match="SSL"):
        engine(httpserver.url_for("/sparql").replace("http:", "https:")).select(QUERY)


@pytest.fixture
def tls(tmp_path, monkeypatch):
    """A server-side TLS context for 127.0.0.1 whose certificate this process trusts."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs the openssl command to make a certificate")
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    command = f"req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=127.0.0.1 -keyout {key} -out {certificate}"
    subprocess.run(
        [openssl, *command.split(), "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True
    )
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


def test_https(engine, tls):
    body = json.dumps(ONE_ROW).encode()

    def talk(connection):
        connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)

    with raw_server(talk, tls) as url:
        assert len(engine(url).select(QUERY)) == 1


def test_the_deadline_holds_under_tls(engine, tls):
    def talk(connection):
        connection.sendall(HEAD + b"\r\n")
        drip(connection, b" ")

    with raw_server(talk, tls) as url, pytest.raises(QueryTimeout):
        engine(url, timeout_seconds=0.5).select(QUERY)


def test_a_certificate_that_nobody_vouches_for(engine, tls, monkeypatch):
    monkeypatch.delenv("SSL_CERT_FILE")
    with raw_server(lambda _: None, tls) as url, pytest.raises(SourceDown, match="CERTIFICATE_VERIFY_FAILED"):
        engine(url).select(QUERY)


@pytest.mark.parametrize(
    ("url", "agent", "timeout_seconds"),
    [
        ("", AGENT, 1.0),
        ("query.wikidata.org/sparql", AGENT, 1.0),
        ("file:///etc/passwd", AGENT, 1.0),
        ("http://", AGENT, 1.0),
        ("http://[::1/sparql", AGENT, 1.0),
        ("http://host:port/sparql", AGENT, 1.0),
        (f"http://{'a' * 70}.example/sparql", AGENT, 1.0),
        ("http://user:secret@host.example/sparql", AGENT, 1.0),
        ("http://host.example/sparql", " ", 1.0),
        ("http://host.example/sparql", "a\r\nX-Evil: b", 1.0),
        ("http://host.example/sparql", AGENT, 0.0),
    ],
)
def test_settings_that_cannot_work(url, agent, timeout_seconds):
    with pytest.raises(SourceError) as caught:
        EndpointEngine(url, user_agent=agent, timeout_seconds=timeout_seconds)
    assert "secret" not in str(caught.value)


def test_the_name_is_the_address(engine):
    assert engine("http://host/sparql").name == "http://host/sparql"


def test_an_answer_in_pieces(httpserver, engine):
    """Chunked, and larger than one read."""
    many = {"head": {"vars": ["x"]}, "results": {"bindings": ONE_ROW["results"]["bindings"] * 5000}}
    text = json.dumps(many).encode()
    pieces = [text[start : start + 1000] for start in range(0, len(text), 1000)]
    httpserver.expect_request("/sparql").respond_with_handler(lambda _: Response(iter(pieces), content_type=JSON_TYPE))
    assert len(engine().select(QUERY)) == 5000
