"""A real SPARQL server gives what the engine inside the process gives."""

from __future__ import annotations

import socket
import subprocess
import sysconfig
import time
from contextlib import contextmanager
from datetime import timedelta
from importlib import resources
from pathlib import Path

import pytest
from small_graph import ALBANIA_FILTERS, ALBANIA_RELATIONS, REPLICATED, albania, albania_in_kinds

from sources import Cursor, QueryTimeout, load_catalogue, open_embedded, open_endpoint
from sources.endpoint import EndpointEngine
from sources.queries import Query

pytestmark = pytest.mark.slow

OXIGRAPH = Path(sysconfig.get_path("scripts")) / "oxigraph"
AGENT = "factsyncd-tests/0 (https://factsyncd.example; tests@factsyncd.example)"
FEED = {"overlap": timedelta(0), "lag": timedelta(0)}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@contextmanager
def served(file: Path, directory: Path, *options: str):
    """An Oxigraph server with the triples of ``file``; yields the query address."""
    subprocess.run([OXIGRAPH, "load", "-l", directory, "-f", file], check=True, capture_output=True)
    port = free_port()
    command = [OXIGRAPH, "serve", "-l", directory, "-b", f"127.0.0.1:{port}", *options]
    with (directory.parent / f"{directory.name}.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        for _ in range(1200):
            assert process.poll() is None, "the server did not start"
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}/query"
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")


def test_a_small_world_is_the_same_over_http(tmp_path):
    file = tmp_path / "albania.ttl"
    file.write_text(albania().turtle(), encoding="utf-8")
    with served(file, tmp_path / "store") as url:
        for options in ({}, {"page_size": 1}, {"page_size": 2, "chunk": 1}):
            here = open_embedded(file, ALBANIA_RELATIONS, **options)
            there = open_endpoint(url, ALBANIA_RELATIONS, user_agent=AGENT, **FEED, **options)
            assert there.replication_time() == here.replication_time()
            expected = list(here.pages(None))
            assert list(there.pages(None)) == expected
            for page in expected:
                assert list(there.pages(page.cursor)) == list(here.pages(page.cursor))


def test_questions_about_items_are_answered_the_same_over_http(tmp_path):
    file = tmp_path / "albania.ttl"
    file.write_text(albania_in_kinds().turtle(), encoding="utf-8")
    asked = ["Q222", "Q99", "Q8", "Q41", "Q403"]
    with served(file, tmp_path / "store") as url:
        for options in ({}, {"filters": ALBANIA_FILTERS, "chunk": 2}, {"filters": ALBANIA_FILTERS, "page_size": 1}):
            here = open_embedded(file, ALBANIA_RELATIONS, **options)
            there = open_endpoint(url, ALBANIA_RELATIONS, user_agent=AGENT, **FEED, **options)
            assert list(there.standing(asked)) == list(here.standing(asked))
            assert list(there.observe(asked, REPLICATED)) == list(here.observe(asked, REPLICATED)) != []
            assert there.names(asked) == here.names(asked) != {}
            assert list(there.pages(None)) == list(here.pages(None))


def packaged_snapshots() -> list[Path]:
    folder = Path(str(resources.files("sources"))) / "snapshots"
    return sorted(path for path in folder.glob("*") if path.suffix == ".ttl") if folder.is_dir() else []


@pytest.mark.parametrize("file", packaged_snapshots(), ids=lambda file: file.name)
def test_a_packaged_snapshot_is_the_same_over_http(tmp_path, file):
    relations = tuple(relation for relation in load_catalogue().values() if relation.stated)
    expected = list(open_embedded(file, relations).pages(None))
    assert any(observation.values for page in expected for observation in page.observations)
    with served(file, tmp_path / "store") as url:
        there = open_endpoint(url, relations, user_agent=AGENT, **FEED)
        assert list(there.pages(None)) == expected


def test_overlap_and_lag_over_http(tmp_path):
    file = tmp_path / "albania.ttl"
    file.write_text(albania().turtle(), encoding="utf-8")
    with served(file, tmp_path / "store") as url:
        source = open_endpoint(url, ALBANIA_RELATIONS, user_agent=AGENT)
        *_, last = source.pages(None)
        assert last.cursor == Cursor(source.replication_time() - timedelta(minutes=2), 0)
        assert list(source.pages(last.cursor)) == []


@pytest.fixture
def busy(tmp_path):
    """A file and a query that takes long on it, has no row to show, and scans all the while.

    Oxigraph looks at its time limit only when it reads the store.
    """
    file = tmp_path / "numbers.nt"
    lines = (f"<http://a/{n}> <http://b> <http://c/{n}> .\n" for n in range(300))
    file.write_text("".join(lines), encoding="utf-8")
    return file, Query("SELECT ?a WHERE { ?a ?p ?b . ?c ?q ?d . ?e ?r ?f FILTER(?a = ?f) }", ("a",))


def test_a_real_timeout_is_told_apart(tmp_path, busy):
    """Oxigraph's own time limit strikes after the status was sent."""
    file, query = busy
    with served(file, tmp_path / "store", "--timeout-s", "1") as url:
        engine = EndpointEngine(url, user_agent=AGENT, timeout_seconds=30)
        with pytest.raises(QueryTimeout, match="ran out of time in its answer"):
            engine.select(query)


def test_our_own_deadline_on_a_real_server(tmp_path, busy):
    file, query = busy
    with served(file, tmp_path / "store", "--timeout-s", "10") as url:
        engine = EndpointEngine(url, user_agent=AGENT, timeout_seconds=1)
        with pytest.raises(QueryTimeout, match="raise the timeout"):
            engine.select(query)
