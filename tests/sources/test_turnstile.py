"""A host is asked one query at a time, whoever asks."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from filelock import FileLock
from werkzeug import Response

from sources import Limits, SourceDown, SourceError
from sources.endpoint import EndpointEngine
from sources.queries import Query
from sources.turnstile import Turnstile

CHILD = Path(__file__).parent / "children" / "ask_in_turn.py"
QUERY = Query("SELECT ?x WHERE { ?x ?y ?z }", ("x",))
EMPTY = '{"head": {"vars": ["x"]}, "results": {"bindings": []}}'


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def crowded(httpserver):
    """An endpoint that counts how many are being served at once; yields the list of counts."""
    httpserver.server.daemon_threads = True
    lock, inside, seen = threading.Lock(), [], []

    def serve(_request):
        with lock:
            inside.append(1)
            seen.append(len(inside))
        time.sleep(0.05)
        with lock:
            inside.pop()
        return Response(EMPTY, content_type="application/sparql-results+json")

    httpserver.expect_request("/sparql").respond_with_handler(serve)
    return seen


@pytest.fixture(scope="session")
def make_httpserver():
    """One thread per request, as a real endpoint has; the plugin's own server takes them one by one."""
    from pytest_httpserver import HTTPServer

    with HTTPServer(threaded=True) as server:
        yield server


def ask(engine, times):
    for _ in range(times):
        engine.select(QUERY)


def test_without_turns_queries_overlap(httpserver, crowded):
    """The endpoint of these tests can tell."""
    engines = [EndpointEngine(httpserver.url_for("/sparql"), user_agent="tests/0", timeout_seconds=30) for _ in "12"]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(ask, engines, [5, 5]))
    assert max(crowded) == 2


def test_threads_with_one_engine_take_turns(httpserver, crowded):
    engine = EndpointEngine(httpserver.url_for("/sparql"), user_agent="tests/0", timeout_seconds=30)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(ask, [engine] * 4, [3] * 4))
    assert crowded == [1] * 12


def test_processes_and_engines_take_turns(httpserver, crowded, tmp_path):
    url, directory = httpserver.url_for("/sparql"), tmp_path / "made" / "turnstile"
    engines = [EndpointEngine(url, user_agent="tests/0", timeout_seconds=30, turnstile=directory) for _ in range(2)]
    # The packages of this checkout, wherever they are installed from.
    environment = os.environ | {"PYTHONPATH": str(CHILD.parents[3])}
    with ExitStack() as stack:
        children = [
            stack.enter_context(subprocess.Popen([sys.executable, CHILD, url, directory, "5"], env=environment))
            for _ in range(2)
        ]
        with ThreadPoolExecutor(2) as pool:
            while not crowded and any(child.poll() is None for child in children):
                time.sleep(0.01)
            list(pool.map(ask, engines, [5, 5]))
    assert [child.returncode for child in children] == [0, 0]
    assert crowded == [1] * 20


def test_a_killed_process_gives_its_turn_back(tmp_path):
    hold = (
        "import sys, time; from pathlib import Path; from sources.turnstile import Turnstile\n"
        "with Turnstile('host', Path(sys.argv[1]), 5).turn(): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", hold, tmp_path], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        with pytest.raises(SourceDown, match="without a turn"), Turnstile("host", tmp_path, 0.1).turn():
            pass
        child.kill()
        child.wait(10)
    with Turnstile("host", tmp_path, 5).turn():
        pass


def test_hosts_do_not_wait_for_each_other(tmp_path):
    with Turnstile("[::1]:80", tmp_path, 0.1).turn(), Turnstile("host:81", tmp_path, 0.1).turn():
        assert len(list(tmp_path.iterdir())) == 2


def test_a_turn_that_does_not_come(httpserver, crowded, tmp_path):
    engine = EndpointEngine(
        httpserver.url_for("/sparql"),
        user_agent="tests/0",
        timeout_seconds=30,
        limits=Limits(turn_seconds=0.1, attempts=1),
        turnstile=tmp_path,
    )
    with (
        FileLock(tmp_path / f"localhost_{httpserver.port}.lock"),
        pytest.raises(SourceDown, match="without a turn"),
    ):
        engine.select(QUERY)
    assert crowded == []
    engine.select(QUERY)


def test_a_directory_that_cannot_be(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SourceError, match="make its directory writable"), Turnstile("h", tmp_path / "file", 1).turn():
        pass
