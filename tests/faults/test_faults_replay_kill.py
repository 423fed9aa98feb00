"""The replay of real snapshots from a real Oxigraph server, with the reading process killed at random points."""

from __future__ import annotations

import os
import random
import signal
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from living_wiki import over_http
from replay import SNAPSHOTS, Replay, edits, instants, labels, snapshots
from small_world import write_config
from sqlmodel import select
from test_daemon_replay import check, check_changes, told
from test_remote import AGENT, served

from daemon.config import load_settings
from daemon.pull import pull
from daemon.runtime import Runtime
from sources.endpoint import EndpointEngine
from store import Database
from store.tables import Cycle, Outcome, Phase, key

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not SNAPSHOTS.exists(), reason="the shared data are not here"),
]
SOURCE = """\
[source]
kind = "endpoint"
url = "{url}"
user_agent = "{agent}"
properties = ["P6", "P1308"]
page_size = {page_size}
chunk = {chunk}
overlap_seconds = {overlap}
lag_seconds = {lag}
revisions_seconds = 0

[breaker]
minimum = 1000000
"""


def pull_once(runtime: Runtime) -> None:
    """The unfinished cycle's pull, or that of a new one."""
    with runtime.database.transaction() as session:
        cycle = session.exec(select(Cycle).where(Cycle.phase == Phase.PULL)).one_or_none() or Cycle()
        session.add(cycle)
    pull(runtime, key(cycle))
    with runtime.database.transaction() as session:
        done = session.get_one(Cycle, key(cycle))
        done.phase, done.outcome = Phase.DONE, Outcome.NOTHING


def die_at(number: int) -> None:
    """Have this process kill itself at its n-th query, commit about to be made, or commit made."""
    left = [number]

    def tick() -> None:
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    real_transaction, real_select = Database.transaction, EndpointEngine.select

    @contextmanager
    def transaction(self: Database) -> Iterator[Any]:
        with real_transaction(self) as session:
            yield session
            session.flush()
            tick()
        tick()

    def ask(self: EndpointEngine, *arguments: Any, **options: Any) -> Any:
        answer = real_select(self, *arguments, **options)
        tick()
        return answer

    Database.transaction = transaction  # type: ignore[method-assign]
    EndpointEngine.select = ask  # type: ignore[method-assign]


def in_a_child(runtime: Runtime, number: int | None) -> bool:
    """Pull in a process of its own, which dies at a point; returns whether it died."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            if number is not None:
                die_at(number)
            pull_once(Runtime(runtime.settings))
            code = 0
        finally:
            os._exit(code)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in {0, -signal.SIGKILL}, "the pull failed"
    return status == -signal.SIGKILL


@pytest.mark.parametrize(("seed", "repositories"), [(1, 12), (2, 12), (3, None)])
def test_a_reader_that_is_killed_again_and_again_misses_nothing_and_doubles_nothing(
    tmp_path: Path, migrated_file: Path, monkeypatch: pytest.MonkeyPatch, seed: int, repositories: int | None
) -> None:
    monkeypatch.setenv("no_proxy", "*")
    chance = random.Random(seed)
    rows = snapshots(repositories, seed)
    overlap, lag = timedelta(minutes=30), timedelta(minutes=2)
    made = edits(rows, overlap + lag, seed)
    (tmp_path / "empty.ttl").write_text("<http://x> <http://y> <http://z> .", "utf-8")
    with served(tmp_path / "empty.ttl", tmp_path / "store") as url:
        source = SOURCE.format(
            url=url, agent=AGENT, page_size=chance.randint(5, 60), chunk=chance.randint(5, 40),
            overlap=overlap.total_seconds(), lag=lag.total_seconds(),
        )  # fmt: skip
        config = write_config(tmp_path / "factsyncd.toml", tmp_path, tmp_path, tmp_path)
        text = config.read_text("utf-8")
        config.write_text(source + text[text.index("[model]") :], "utf-8")
        runtime = Runtime(load_settings(config))
        runtime.make_state_directory()
        (tmp_path / "state" / "factsyncd.sqlite").write_bytes(migrated_file.read_bytes())
        replay = Replay(over_http(url), made, lag, made[len(made) // 4].modified)
        replay.prepare(labels(rows))
        killed = 0
        moments = [moment for moment in instants(made, 25, seed, timedelta(hours=9)) if moment > replay.first]
        for now in [replay.first, *moments]:
            replay.show(now)
            while chance.random() < 0.7:
                killed += in_a_child(runtime, chance.randint(0, 25))
            assert not in_a_child(runtime, None)
            check(replay, runtime.database, now)
            replay.expect(now)
            runtime.database.close()  # no connection is carried into a child
        assert replay.is_over
        assert killed > 10
        check_changes(replay, runtime.database)
        assert len(told(runtime.database)) > 10
        runtime.database.close()
