"""Every fault of a source, staged between a real Oxigraph and whole pulls: nothing is recorded, the next recovers."""

from __future__ import annotations

import json
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import stamina
from living_wiki import LivingWiki, over_http
from observations import LEADER, moment
from small_world import write_config
from sqlmodel import select
from test_remote import AGENT, served

from daemon.config import load_settings
from daemon.errors import TooEarly
from daemon.pull import pull
from daemon.runtime import Runtime
from sources import BadAnswer, Banned, QueryTimeout, SourceDown, SourceError, Throttled
from store.tables import Change, Control, Cycle, Fact, SourceCursor, key

pytestmark = pytest.mark.slow
JSON = "application/sparql-results+json"
SOURCE = """\
[source]
kind = "endpoint"
url = "{url}"
user_agent = "{agent}"
properties = ["P6", "P36"]
timeout_seconds = 1
revisions_seconds = 1e9
"""
Fault = Callable[[BaseHTTPRequestHandler, bytes], None]


def answer(status: int, body: str = "", kind: str = "text/plain", **headers: str) -> Fault:
    def fault(handler: BaseHTTPRequestHandler, _real: bytes) -> None:
        content = body.encode()
        handler.send_response(status)
        sent = {"Content-Type": kind, "Content-Length": str(len(content))}
        for name, value in (sent | {name.replace("_", "-"): value for name, value in headers.items()}).items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(content)

    return fault


def truncated(handler: BaseHTTPRequestHandler, real: bytes) -> None:
    answer(200, real[: len(real) // 2].decode(errors="ignore"), JSON)(handler, real)


def cut(handler: BaseHTTPRequestHandler, real: bytes) -> None:
    handler.send_response(200)
    handler.send_header("Content-Type", JSON)
    handler.send_header("Content-Length", str(len(real)))
    handler.end_headers()
    handler.wfile.write(real[: len(real) // 2])
    handler.close_connection = True


def dripping(handler: BaseHTTPRequestHandler, real: bytes) -> None:
    handler.send_response(200)
    handler.send_header("Content-Type", JSON)
    handler.send_header("Content-Length", str(len(real)))
    handler.end_headers()
    for byte in real:
        try:
            handler.wfile.write(bytes([byte]))
        except OSError:
            return
        time.sleep(0.2)


def timed_out(handler: BaseHTTPRequestHandler, real: bytes) -> None:
    text = real[: len(real) // 2].decode(errors="ignore") + "\njava.util.concurrent.TimeoutException\n\tat x.y(Z.java)"
    answer(200, text, JSON)(handler, real)


def wrong_columns(handler: BaseHTTPRequestHandler, real: bytes) -> None:
    answer(200, json.dumps({"head": {"vars": ["x"]}, "results": {"bindings": []}}), JSON)(handler, real)


FAULTS: dict[str, tuple[Fault, type[SourceError]]] = {
    "429": (answer(429, "slow down"), Throttled),
    "429 with Retry-After": (answer(429, "slow down", Retry_After="3600"), Throttled),
    "403": (answer(403, "banned"), Banned),
    "503": (answer(503, "overloaded"), SourceDown),
    "truncated 200": (truncated, BadAnswer),
    "HTML 200": (answer(200, "<html>maintenance</html>", "text/html"), BadAnswer),
    "cut connection": (cut, SourceDown),
    "slow drip": (dripping, QueryTimeout),
    "redirect on POST": (answer(301, "", Location="http://127.0.0.1:1/"), BadAnswer),
    "stack trace in a 200": (timed_out, QueryTimeout),
    "wrong columns": (wrong_columns, BadAnswer),
}


class Proxy:
    """Hands queries on to a server, unless a fault is set for those that contain a text."""

    def __init__(self, target: str) -> None:
        self.fault: Fault | None = None
        self.on = ""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                kept = {name: self.headers[name] for name in ("Content-Type", "Accept") if self.headers[name]}
                with opener.open(urllib.request.Request(target, body, kept, method="POST")) as real:
                    content = real.read()
                if proxy.fault is not None and proxy.on in urllib.parse.unquote_plus(body.decode()):
                    proxy.fault(self, content)
                else:
                    answer(200, content.decode(), JSON)(self, content)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/query"


@contextmanager
def proxied(target: str) -> Iterator[Proxy]:
    proxy = Proxy(target)
    threading.Thread(target=proxy.server.serve_forever, daemon=True).start()
    try:
        yield proxy
    finally:
        proxy.server.shutdown()
        proxy.server.server_close()


class World:
    def __init__(self, wiki: LivingWiki, proxy: Proxy, runtime: Runtime) -> None:
        self.wiki, self.proxy, self.runtime = wiki, proxy, runtime

    def pull(self) -> None:
        with self.runtime.database.transaction() as session:
            cycle = Cycle()
            session.add(cycle)
        pull(self.runtime, key(cycle))

    def recorded(self) -> list[Any]:
        with self.runtime.database.read() as session:
            return [[row.model_dump() for row in session.exec(select(table))] for table in (Fact, Change, SourceCursor)]

    def forgive(self) -> None:
        """The time to wait is up."""
        with self.runtime.database.transaction() as session:
            for control in session.exec(select(Control)).all():
                if control.key.startswith("not before"):
                    session.delete(control)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    directory = tmp_path_factory.mktemp("server")
    (directory / "empty.ttl").write_text("<http://x> <http://y> <http://z> .", "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("no_proxy", "*")
        with served(directory / "empty.ttl", directory / "store") as url:
            yield url


@pytest.fixture
def world(server: str, tmp_path: Path, migrated_file: Path) -> Iterator[World]:
    """Two facts that are read, and an edit of one that is not."""
    wiki = over_http(server)
    for number in (1, 2, 3):
        wiki.name(f"Q1{number}", f"Head {number}")
    for number in (1, 2):
        wiki.put(f"Q{number}", f"Country {number}", 100 + number, moment(-24), [(LEADER, f"Q1{number}")])
    wiki.clock(moment(0)).flush()
    with proxied(server) as proxy:
        config = write_config(tmp_path / "factsyncd.toml", tmp_path, tmp_path, tmp_path)
        text = config.read_text("utf-8")
        config.write_text(SOURCE.format(url=proxy.url, agent=AGENT) + "\n" + text[text.index("[model]") :], "utf-8")
        runtime = Runtime(load_settings(config))
        runtime.make_state_directory()
        (tmp_path / "state" / "factsyncd.sqlite").write_bytes(migrated_file.read_bytes())
        made = World(wiki, proxy, runtime)
        with stamina.set_testing(True, attempts=1):
            made.pull()
            wiki.put("Q1", "Country 1", 201, moment(1), [(LEADER, "Q13")]).clock(moment(5)).flush()
            yield made
        runtime.database.close()


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_records_nothing_and_the_next_poll_recovers(world: World, name: str) -> None:
    fault, error = FAULTS[name]
    before = world.recorded()
    world.proxy.fault, world.proxy.on = fault, "ORDER BY"
    with pytest.raises(error):
        world.pull()
    assert world.recorded() == before
    world.proxy.fault = None
    if name in {"429 with Retry-After", "403"}:
        with pytest.raises(TooEarly):
            world.pull()
        world.forgive()
    world.pull()
    with world.runtime.database.read() as session:
        fact = session.get_one(Fact, ("Q1", LEADER))
        (change,) = session.exec(select(Change).where(Change.qid == "Q1")).all()
    assert (fact.values[0]["label"], fact.revision) == ("Head 3", 201)
    assert (change.old_values[0]["label"], change.new_values[0]["label"]) == ("Head 1", "Head 3")


def test_an_empty_answer_for_items_that_exist_ends_no_fact(world: World) -> None:
    source = world.runtime.settings.source.model_copy(update={"revisions_seconds": 0.0})
    world.runtime.settings = world.runtime.settings.model_copy(update={"source": source})

    def empty(handler: BaseHTTPRequestHandler, real: bytes) -> None:
        head = json.loads(real)["head"]
        answer(200, json.dumps({"head": head, "results": {"bindings": []}}), JSON)(handler, real)

    world.pull()
    world.proxy.fault, world.proxy.on = empty, "owl#sameAs"
    world.wiki.clock(moment(6)).flush()
    world.pull()
    with world.runtime.database.read() as session:
        facts = session.exec(select(Fact)).all()
    assert [value["label"] for fact in facts for value in fact.values] == ["Head 3", "Head 2"]
    assert not any(fact.gone for fact in facts)


def test_watermark_and_requests_are_exported(world: World) -> None:
    world.runtime.metrics.watch(world.runtime.database)
    world.pull()
    sample = world.runtime.metrics.registry.get_sample_value
    name = {"source": world.runtime.source_name}
    read = moment(5) - timedelta(minutes=2)
    assert sample("factsyncd_watermark_timestamp_seconds", name) == read.timestamp()
    assert sample("factsyncd_source_replication_timestamp_seconds", name) == moment(5).timestamp()
    assert sample("factsyncd_source_items_total") == 3
    assert (sample("factsyncd_source_requests_total", {"outcome": "ok"}) or 0) > 5
    assert sample("factsyncd_source_request_duration_seconds_count") == sample(
        "factsyncd_source_requests_total", {"outcome": "ok"}
    )
    world.wiki.clock(moment(9)).flush()
    world.pull()
    assert sample("factsyncd_watermark_timestamp_seconds", name) == (moment(9) - timedelta(minutes=2)).timestamp()
