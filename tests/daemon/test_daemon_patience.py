"""Patience: who was told to wait waits, also after a restart and whatever the command; nobody is asked meanwhile."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from daemon import inspect, patience
from daemon.audit import audit
from daemon.errors import TooEarly
from daemon.pull import pull
from daemon.runtime import Runtime
from sources import Banned, Throttled, WikidataSource
from store.tables import Cycle, SourceCursor, key

if TYPE_CHECKING:
    from store import Database


@pytest.fixture
def cycle_id(database: Database) -> int:
    with database.transaction() as session:
        cycle = Cycle()
        session.add(cycle)
    return key(cycle)


def refuse(monkeypatch: pytest.MonkeyPatch, runtime: Runtime, error: Exception) -> list[str]:
    asked: list[str] = []

    def replication_time(self: WikidataSource) -> Any:
        asked.append(self.name)
        raise error

    monkeypatch.setattr(WikidataSource, "replication_time", replication_time)
    return asked


@pytest.mark.parametrize(
    ("error", "seconds"), [(Throttled("wait", 700.0), 700), (Banned("go away", 86_400.0), 86_400)], ids=["429", "403"]
)
def test_nobody_asks_before_the_time(
    runtime: Runtime, cycle_id: int, monkeypatch: pytest.MonkeyPatch, error: Exception, seconds: int
) -> None:
    asked = refuse(monkeypatch, runtime, error)
    with pytest.raises(type(error)):
        pull(runtime, cycle_id)
    assert len(asked) == 1
    restarted = Runtime(runtime.settings)
    for ask in (lambda: pull(runtime, cycle_id), lambda: pull(restarted, cycle_id), lambda: audit(restarted, 5)):
        with pytest.raises(TooEarly, match="not to be asked before"):
            ask()
    assert len(asked) == 1
    with runtime.database.read() as session:
        (rest,) = inspect.status(session)["resting"]
        assert session.get(SourceCursor, runtime.source_name) is None
    assert (rest["source"], rest["why"]) == (runtime.source_name, str(error))
    now = patience.utc_now()
    monkeypatch.setattr(patience, "utc_now", lambda: now + timedelta(seconds=seconds - 60))
    with pytest.raises(TooEarly):
        pull(runtime, cycle_id)
    monkeypatch.setattr(patience, "utc_now", lambda: now + timedelta(seconds=seconds + 60))
    with pytest.raises(type(error)):
        pull(runtime, cycle_id)
    assert len(asked) == 2


def test_without_a_time_the_next_cycle_may_ask(
    runtime: Runtime, cycle_id: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = refuse(monkeypatch, runtime, Throttled("slowly", None))
    for _ in range(2):
        with pytest.raises(Throttled):
            pull(runtime, cycle_id)
    assert len(asked) == 2


def test_a_ban_is_of_a_user_agent(runtime: Runtime, cycle_id: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = refuse(monkeypatch, runtime, Banned("go away", 86_400.0))
    with pytest.raises(Banned):
        pull(runtime, cycle_id)
    source = runtime.settings.source.model_copy(update={"user_agent": "corrected/1 (mailto:me@somewhere.net)"})
    runtime.settings = runtime.settings.model_copy(update={"source": source})
    with pytest.raises(Banned):
        pull(runtime, cycle_id)
    assert len(asked) == 2
