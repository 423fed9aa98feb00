"""The outbox with real rows and engines over HTTP: retries, confirmation, rollback of a target, drift."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from publishing import EAGER, Engine, Story, target
from pytest_httpserver import HTTPServer
from structlog.testing import capture_logs

from daemon import control, drift, inspect, publish
from daemon.deliver import deliver
from daemon.errors import NotPossible, NotPublished
from daemon.show import show_status
from editor import Interrupted
from store.tables import utc_now

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DIRECTORY = '[[publish.targets]]\ntype = "directory"\n'
VLLM = 'model = "kb"', 'name = "engine"'


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("SECRET", "shared")


@pytest.fixture
def server() -> Iterator[Callable[[], HTTPServer]]:
    """Makes servers; two targets have two."""
    started: list[HTTPServer] = []

    def make() -> HTTPServer:
        # Threads, so that one that hangs does not hold up the next request.
        started.append(HTTPServer(threaded=True))
        started[-1].start()
        return started[-1]

    yield make
    for one in started:
        one.clear()
        if one.is_running():
            one.stop()


@pytest.fixture
def tell(tmp_path: Path, migrated_file: Path) -> Iterator[Callable[..., Story]]:
    """Makes a story with targets, v1 published to all of them."""
    made: list[Story] = []

    def make(*tables: str, keys: str = "", published: bool = True) -> Story:
        story = Story(tmp_path, migrated_file, keys + "".join(tables))
        made.append(story)
        story.runtime.metrics.watch(story.runtime.database)
        if published:
            story.promote(1)
            deliver(story.runtime)
        return story

    yield make
    for story in made:
        story.runtime.database.close()


def test_a_promotion_reaches_every_target(tell: Callable[..., Story], server: Callable[[], HTTPServer]) -> None:
    vllm, sglang = Engine(server()), Engine(server())
    story = tell(DIRECTORY, target("vllm", vllm.url, 'model = "kb"'), target("sglang", sglang.url, 'model = "kb"'))
    story.promote(2)
    deliver(story.runtime)
    assert (vllm.has, sglang.has) == ("v2", "v2")
    assert (story.state / "current").resolve().name == "v2"
    for name in ("directory", "vllm", "sglang"):
        assert story.rows(name) == [(1, "delivered"), (2, "delivered")]
        assert story.metric("factsyncd_published_version", target=name) == 2
        assert story.metric("factsyncd_publication_failures_total", target=name) == 0
        assert story.metric("factsyncd_publication_duration_seconds_count", target=name) == 2
    publish.require_published(story.runtime, 2)


def test_an_engine_that_is_down_holds_nobody_back_and_gets_it_later(
    tell: Callable[..., Story], server: Callable[[], HTTPServer]
) -> None:
    down = server()
    engine = Engine(down)
    story = tell(DIRECTORY, target("vllm", engine.url, *VLLM), keys=EAGER)
    port = down.port
    down.stop()
    story.promote(2)
    with capture_logs() as logs:
        deliver(story.runtime)
    assert story.rows("directory")[-1] == (2, "delivered")
    assert story.rows("engine")[-1] == (2, "pending")
    row = story.newest("engine")
    assert row.attempts >= 1
    assert "cannot be reached" in row.detail
    assert any(log["event"] == "publication failed" and log["target"] == "engine" for log in logs)
    assert story.metric("factsyncd_publications", target="engine", state="pending") == 1
    assert story.metric("factsyncd_publications", target="directory", state="pending") == 0
    assert story.metric("factsyncd_publication_failures_total", target="engine") == row.attempts
    assert story.metric("factsyncd_published_version", target="engine") == 1
    assert (story.metric("factsyncd_publication_pending_timestamp_seconds", target="engine") or 0) > 0
    assert story.metric("factsyncd_publication_pending_timestamp_seconds", target="directory") is None
    with pytest.raises(NotPublished, match=r"version 2 is promoted.*engine \(.*cannot be reached"):
        publish.require_published(story.runtime, 2)

    back = HTTPServer(port=port)
    back.start()
    try:
        engine = Engine(back)
        deliver(story.runtime)
    finally:
        back.clear()
        back.stop()
    assert engine.has == "v2"
    assert story.rows("engine")[-1] == (2, "delivered")


def test_attempts_are_further_and_further_apart(
    tell: Callable[..., Story], server: Callable[[], HTTPServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(server())
    story = tell(target("vllm", engine.url, *VLLM), keys="retry_seconds = 100\nretry_max_seconds = 300\n")
    engine.refuses["/collective_rpc"] = 99
    story.promote(2)
    waits = []
    for _ in range(4):
        before = utc_now()
        deliver(story.runtime)
        deliver(story.runtime)  # its time has not come
        row = story.newest("engine")
        waits.append(round((row.next_at - before).total_seconds(), -2))
        later = row.next_at
        monkeypatch.setattr("daemon.deliver.utc_now", lambda later=later: later)
        monkeypatch.setattr("daemon.outbox.utc_now", lambda later=later: later)
        monkeypatch.setitem(globals(), "utc_now", lambda later=later: later)
    assert waits == [100, 200, 300, 300]
    assert story.newest("engine").attempts == 4
    assert engine.has == "v1"


def test_a_newer_promotion_overtakes_what_was_not_delivered(
    tell: Callable[..., Story], server: Callable[[], HTTPServer]
) -> None:
    engine = Engine(server())
    story = tell(DIRECTORY, target("vllm", engine.url, *VLLM), keys="retry_seconds = 100\n")
    engine.refuses["/collective_rpc"] = 2
    story.promote(2)
    deliver(story.runtime)
    story.promote(0)
    engine.requests.clear()
    deliver(story.runtime)
    assert story.rows("engine") == [(1, "delivered"), (2, "superseded"), (0, "delivered")]
    assert story.rows("directory") == [(1, "delivered"), (2, "delivered"), (0, "delivered")]
    assert engine.has == "v0"
    # Nobody sends it what was overtaken.
    assert not any("versions/v2" in body for _, body in engine.requests)


def test_an_engine_that_lies_is_rolled_back_and_the_others_go_on(
    tell: Callable[..., Story], server: Callable[[], HTTPServer]
) -> None:
    liar, honest = Engine(server()), Engine(server())
    story = tell(target("vllm", liar.url, *VLLM), target("sglang", honest.url, 'model = "kb"'))
    liar.deaf = True
    story.promote(2)
    liar.requests.clear()
    with capture_logs() as logs:
        deliver(story.runtime)
    assert story.rows("engine") == [(1, "delivered"), (2, "failed"), (1, "delivered")]
    assert story.rows("sglang") == [(1, "delivered"), (2, "delivered")]
    loads = [body for route, body in liar.requests if route == "POST /collective_rpc"]
    assert ["v2" in loads[0], "v1" in loads[1]] == [True, True]
    (alarm,) = [log for log in logs if log["event"] == "publication not confirmed"]
    assert (alarm["log_level"], alarm["target"], alarm["version"]) == ("error", "engine", 2)
    assert "'Old" in alarm["detail"]
    assert story.metric("factsyncd_publications", target="engine", state="failed") == 1
    assert story.metric("factsyncd_published_version", target="engine") == 1
    assert story.metric("factsyncd_publication_failures_total", target="engine") == 1
    # It is not tried again by itself, and an operator is told why.
    liar.requests.clear()
    deliver(story.runtime)
    assert liar.requests == []
    with pytest.raises(NotPublished, match="questions"):
        publish.require_published(story.runtime, 2)
    liar.deaf = False
    assert publish.publish_again(story.runtime, "engine") == 2
    assert (liar.has, story.rows("engine")[-1]) == ("v2", (2, "delivered"))


def test_an_engine_that_goes_on_with_what_was_rolled_back_is_noticed(
    tell: Callable[..., Story], server: Callable[[], HTTPServer]
) -> None:
    engine = Engine(server(), has="v2")
    story = tell(target("vllm", engine.url, *VLLM))
    story.promote(2)
    deliver(story.runtime)
    engine.deaf = True
    story.promote(1)
    deliver(story.runtime)
    row = [row for row in story.rows("engine") if row[1] == "failed"]
    assert row == [(1, "failed")]


def test_a_target_without_a_former_version_is_left_where_it_is(
    tell: Callable[..., Story], server: Callable[[], HTTPServer]
) -> None:
    engine = Engine(server(), has="v0", deaf=True)
    story = tell(target("vllm", engine.url, *VLLM))
    assert story.rows("engine") == [(1, "failed")]


def test_an_engine_that_cannot_be_asked_is_tried_again(
    tell: Callable[..., Story], server: Callable[[], HTTPServer]
) -> None:
    engine = Engine(server())
    story = tell(target("vllm", engine.url, *VLLM), keys=EAGER)
    engine.refuses["/v1/completions"] = 2
    story.promote(2)
    for _ in range(3):
        deliver(story.runtime)
    assert story.rows("engine") == [(1, "delivered"), (2, "delivered")]


def test_what_unforeseen_goes_wrong_with_one_target_stays_with_it(
    tell: Callable[..., Story], server: Callable[[], HTTPServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    vllm, sglang = Engine(server()), Engine(server())
    story = tell(target("vllm", vllm.url, *VLLM), target("sglang", sglang.url, 'model = "kb"'))
    story.promote(2)
    monkeypatch.setattr("daemon.publishers.vllm.VllmPublisher.publish", lambda *_: {}["no such key"])
    deliver(story.runtime)
    assert story.newest("engine").detail == "KeyError: 'no such key'"
    assert story.rows("engine")[-1] == (2, "pending")
    assert story.rows("sglang")[-1] == (2, "delivered")


def test_a_slow_target_does_not_hold_back_the_other(
    tell: Callable[..., Story], server: Callable[[], HTTPServer]
) -> None:
    slow, quick = Engine(server()), Engine(server())
    story = tell(target("vllm", slow.url, *VLLM), target("sglang", quick.url, 'model = "kb"'))
    story.promote(2)
    other_is_done = threading.Event()
    real_load, real_answer = slow.routes["/collective_rpc"], quick.routes["/v1/completions"]
    # The slow one only goes on once the quick one has been confirmed.
    slow.routes["/collective_rpc"] = lambda body: (other_is_done.wait(60), real_load(body))[1]
    quick.routes["/v1/completions"] = lambda body: (other_is_done.set(), real_answer(body))[1]
    deliver(story.runtime)
    assert story.rows("engine")[-1] == story.rows("sglang")[-1] == (2, "delivered")


def test_a_stop_leaves_it_pending(tell: Callable[..., Story], server: Callable[[], HTTPServer]) -> None:
    engine = Engine(server())
    story = tell(target("vllm", engine.url, *VLLM))
    story.promote(2)

    def stop(stage: str, done: int, total: int) -> None:
        raise Interrupted(f"stopped during {stage}")

    story.runtime.progress = stop
    with pytest.raises(Interrupted):
        deliver(story.runtime)
    assert story.rows("engine")[-1] == (2, "pending")
    assert not engine.paused
    story.runtime.progress = lambda *_: None
    deliver(story.runtime)
    assert story.rows("engine")[-1] == (2, "delivered")


def test_rollback_is_the_same_delivery(tell: Callable[..., Story], server: Callable[[], HTTPServer]) -> None:
    engine = Engine(server())
    story = tell(DIRECTORY, target("vllm", engine.url, *VLLM))
    story.promote(2)
    deliver(story.runtime)
    assert control.rollback(story.runtime, None) == 1
    assert engine.has == "v1"
    assert (story.state / "current").resolve().name == "v1"
    engine.refuses["/collective_rpc"] = 9
    with pytest.raises(NotPublished, match="version 0 is promoted, and not all targets answer with it yet"):
        control.rollback(story.runtime, 0)
    assert (story.state / "current").resolve().name == "v0"


def test_an_engine_that_restarted_with_old_weights_gets_the_version_again(
    tell: Callable[..., Story], server: Callable[[], HTTPServer]
) -> None:
    engine = Engine(server())
    story = tell(DIRECTORY, target("vllm", engine.url, *VLLM))
    story.runtime.metrics.publications.targets(story.runtime.settings.publish.names)
    story.promote(2)
    deliver(story.runtime)
    assert drift.watch(story.runtime) == []
    engine.has = "v0"
    with capture_logs() as logs:
        assert drift.watch(story.runtime) == ["engine"]
    assert engine.has == "v2"
    assert story.rows("engine") == [(1, "delivered"), (2, "delivered"), (2, "delivered")]
    assert [log["log_level"] for log in logs if log["event"] == "target has drifted"] == ["error"]
    assert story.metric("factsyncd_engine_checks_total", target="engine", outcome="drifted") == 1
    assert story.metric("factsyncd_engine_checks_total", target="engine", outcome="agrees") == 1
    assert story.metric("factsyncd_engine_checks_total", target="directory", outcome="drifted") == 0
    assert drift.watch(story.runtime) == []


@pytest.mark.parametrize("restarted_with", ["v0", "v2"])
def test_drift_from_a_version_that_was_rolled_back_to(
    tell: Callable[..., Story], server: Callable[[], HTTPServer], restarted_with: str
) -> None:
    engine = Engine(server())
    story = tell(target("vllm", engine.url, *VLLM))
    story.promote(2)
    deliver(story.runtime)
    control.rollback(story.runtime, 1)
    engine.has = restarted_with
    assert drift.watch(story.runtime) == ["engine"]
    assert engine.has == "v1"


def test_sglang_tells_by_itself_that_it_restarted(tell: Callable[..., Story], server: Callable[[], HTTPServer]) -> None:
    engine = Engine(server())
    story = tell(target("sglang", engine.url, 'model = "kb"'), keys="[publish.confirm]\nfacts = 0\ncontrols = 0\n")
    engine.weight_version = "default"
    assert drift.watch(story.runtime) == ["sglang"]
    assert engine.weight_version.startswith("v1-")


def test_a_link_that_somebody_moved_is_set_again(tell: Callable[..., Story]) -> None:
    story = tell(DIRECTORY)
    (story.state / "current").unlink()
    (story.state / "current").symlink_to(story.state / "versions" / "v0")
    assert drift.watch(story.runtime) == ["directory"]
    assert (story.state / "current").resolve().name == "v1"


def test_an_engine_that_is_down_has_not_drifted(tell: Callable[..., Story], server: Callable[[], HTTPServer]) -> None:
    engine = Engine(server())
    story = tell(target("vllm", engine.url, *VLLM))
    engine.server.stop()
    assert drift.watch(story.runtime) == []
    assert story.rows("engine") == [(1, "delivered")]
    assert story.metric("factsyncd_engine_checks_total", target="engine", outcome="unreachable") == 1


def test_an_engine_that_takes_its_version_and_drifts_all_the_same_waits_for_an_operator(
    tell: Callable[..., Story], server: Callable[[], HTTPServer]
) -> None:
    engine = Engine(server())
    story = tell(target("vllm", engine.url, *VLLM))
    engine.has, engine.deaf = "v0", True
    assert drift.watch(story.runtime) == ["engine"]
    assert story.rows("engine") == [(1, "delivered"), (1, "failed")]
    assert drift.watch(story.runtime) == []


def test_an_engine_behind_a_webhook_is_given_its_time(
    tell: Callable[..., Story], server: Callable[[], HTTPServer]
) -> None:
    behind, hook = Engine(server()), Engine(server())
    asked = iter(range(99))

    def late(body: dict[str, object]) -> object:
        if next(asked) == 2:
            behind.has = "v2"
        return Engine._complete(behind, body)

    story = tell(
        target(
            "webhook", f"{hook.url}hook", f'ask_url = "{behind.url}"', 'model = "kb"', 'secret = { env = "SECRET" }'
        ),
        published=False,
    )
    hook.routes["/hook"] = lambda _: {}
    behind.routes["/v1/completions"] = late
    story.promote(2)
    deliver(story.runtime)
    assert story.rows("webhook") == [(2, "delivered")]
    assert hook.asked == ["POST /hook"]


def test_begin_brings_new_targets_to_the_promoted_version_and_gives_up_removed_ones(
    tell: Callable[..., Story], server: Callable[[], HTTPServer]
) -> None:
    engine = Engine(server(), has="v0")
    story = tell(DIRECTORY, target("vllm", engine.url, *VLLM), published=False)
    with story.runtime.database.transaction() as session:
        publish.outbox.enqueue(session, 1, ["gone"])
    publish.begin(story.runtime)
    assert engine.has == "v1"
    assert story.rows("gone") == [(1, "superseded")]
    before = story.rows("directory"), story.rows("engine")
    publish.begin(story.runtime)
    assert (story.rows("directory"), story.rows("engine")) == before == ([(1, "delivered")], [(1, "delivered")])
    (story.state / "current").unlink()
    publish.begin(story.runtime)
    assert (story.state / "current").resolve().name == "v1"


def test_publish_again_knows_its_targets(tell: Callable[..., Story]) -> None:
    with pytest.raises(NotPossible, match="no target is called 'vlm': there are directory"):
        publish.publish_again(tell(DIRECTORY).runtime, "vlm")


def test_status_shows_every_target(
    tell: Callable[..., Story], server: Callable[[], HTTPServer], capsys: pytest.CaptureFixture[str]
) -> None:
    engine = Engine(server())
    story = tell(DIRECTORY, target("vllm", engine.url, *VLLM))
    engine.refuses["/collective_rpc"] = 2
    story.promote(2)
    deliver(story.runtime)
    with story.runtime.database.read() as session:
        status = inspect.status(session)
    told = {
        row["target"]: (row["has"], row["newest"]["version_id"], row["newest"]["state"])
        for row in status["publications"]
    }
    assert told == {"directory": (2, 2, "delivered"), "engine": (1, 2, "pending")}
    show_status(status)
    shown = " ".join(capsys.readouterr().out.split())
    assert "target directory" in shown
    assert "has v1, v2 pending" in shown


def test_no_secret_reaches_the_outbox_the_metrics_or_the_log(
    tell: Callable[..., Story], server: Callable[[], HTTPServer], capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("SECRET", "sesame-open")
    engine = Engine(server())
    engine.refuses["/collective_rpc"] = 99
    with capture_logs() as logs:
        story = tell(target("vllm", engine.url, *VLLM, 'api_key = { env = "SECRET" }'), keys=EAGER)
    assert engine.headers[0]["Authorization"] == "Bearer sesame-open"
    everything = f"{logs}{story.page()}{story.newest('engine')}{capsys.readouterr()}{story.runtime.settings}"
    assert "sesame" not in everything
