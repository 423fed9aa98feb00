"""Killed while it publishes, with an engine that stays: delivered at least once, and in the end as undisturbed."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from publishing import Engine, target
from pytest_httpserver import HTTPServer
from small_world import Factsyncd
from test_faults_cycle_kill import KILL_AT, once, start_service, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable

# The answers of the tiny model are nobody's business here.
UNASKED = "\n[publish]\nretry_seconds = 0.01\n[publish.confirm]\nfacts = 0\ncontrols = 0\n"
LOCAL = {"no_proxy": "*"}


@pytest.fixture
def served(state: Callable[..., Path], httpserver: HTTPServer, factsyncd: Factsyncd) -> tuple[Path, Engine]:
    """A state with a directory and an engine, both at version 0, and a cycle to be run."""
    config, engine = state(), Engine(httpserver, has="nothing")
    tables = UNASKED + '[[publish.targets]]\ntype = "directory"\n' + target("vllm", engine.url, 'model = "kb"')
    config.write_text(config.read_text("utf-8") + tables, "utf-8")
    assert factsyncd("pull", "--config", config, env=LOCAL).code == 0
    assert engine.has == "v0"
    engine.requests.clear()
    return config, engine


def publications(factsyncd: Factsyncd, config: Path) -> dict[str, Any]:
    status = factsyncd("status", "--json", "--config", config).data
    return {
        row["target"]: (row["has"], row["newest"]["version_id"], row["newest"]["state"])
        for row in status["publications"]
    }


@pytest.mark.parametrize(
    "point",
    ["in promote before its commit", "after the link's swap", "after the delivery before its commit",
     "after the delivery before the end"],
)  # fmt: skip
def test_a_kill_while_publishing_is_made_good(factsyncd: Factsyncd, served: tuple[Path, Engine], point: str) -> None:
    config, engine = served
    killed = factsyncd("once", "--config", config, before=(KILL_AT, point), env=LOCAL)
    assert killed.code == -signal.SIGKILL, f"the kill was not staged: {killed}"
    if point == "in promote before its commit":
        assert engine.requests == [], "nothing that is not promoted is published"
    assert once(factsyncd, config, env=LOCAL)["detail"] == "version 1 is promoted and published"
    assert (engine.has, engine.paused) == ("v1", False)
    assert (config.parent / "state" / "current").resolve().name == "v1"
    delivered = (1, 1, "delivered")
    assert publications(factsyncd, config) == {"directory": delivered, "vllm": delivered}
    # Doing it once more changes nothing: there is nothing left to do.
    engine.requests.clear()
    assert once(factsyncd, config, env=LOCAL)["outcome"] == "nothing"
    assert engine.requests == []


def test_a_cycle_ends_promoted_while_an_engine_is_down_and_the_next_command_delivers(
    factsyncd: Factsyncd, served: tuple[Path, Engine]
) -> None:
    config, engine = served
    engine.refuses["/collective_rpc"] = 10_000
    finished = factsyncd("once", "--json", "--config", config, env=LOCAL)
    assert (finished.code, finished.data["outcome"]) == (0, "promoted")
    assert "not yet published: vllm (" in finished.data["detail"]
    assert publications(factsyncd, config) == {"directory": (1, 1, "delivered"), "vllm": (0, 1, "pending")}
    assert not engine.paused
    refused = factsyncd("publish", "vllm", "--config", config, env=LOCAL)
    assert refused.code == 1
    assert "version 1 is promoted, and not all targets answer with it yet (vllm (" in refused.errors.splitlines()[-1]
    engine.refuses.clear()
    assert once(factsyncd, config, env=LOCAL)["outcome"] == "nothing"
    assert publications(factsyncd, config)["vllm"] == (1, 1, "delivered")

    assert factsyncd("rollback", "--config", config, env=LOCAL).code == 0
    assert engine.has == "v0"
    assert factsyncd("verify", "--json", "--config", config).data == {"verified": [0, 1]}


def test_the_service_delivers_what_failed_and_notices_an_engine_that_restarted(
    state: Callable[..., Path], httpserver: HTTPServer
) -> None:
    config, engine = state(), Engine(httpserver, has="nothing")
    table = target("sglang", engine.url, 'model = "kb"')
    # Jobs that come more often than a busy machine gives them a turn are told as trouble.
    seldom = UNASKED.replace("retry_seconds = 0.01", "retry_seconds = 1\nretry_max_seconds = 1\ndrift_seconds = 1")
    config.write_text(config.read_text("utf-8") + seldom + table, "utf-8")
    engine.refuses["/update_weights_from_disk"] = 3
    process, lines = start_service(config, **LOCAL)
    try:
        wait_for("publication failed", lines, process)
        wait_for("cycle finished", lines, process)
        # The engine restarts after the publication is settled, not within it.
        wait_until(lambda: any("published" in line and "version=1" in line for line in list(lines)), process)
        assert engine.has == "v1"
        engine.has, engine.weight_version = "v0", "default"
        wait_until(lambda: engine.has == "v1", process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
    assert any("target has drifted" in line for line in lines), "".join(lines)
    assert not any("Traceback" in line for line in lines), "".join(lines)
    assert not any("job=deliver" in line or "job=drift" in line for line in lines), "".join(lines)


def wait_until(there: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 120
    while not there():
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.05)
