"""``factsyncd run``: cycles on a schedule, metrics over HTTP, and a clean stop.

Signal handlers only set a flag. The work notices it between two steps, the cycle stays where its last phase
committed, and the next start goes on from there.
"""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from apscheduler.events import EVENT_JOB_ERROR, EVENT_JOB_MAX_INSTANCES, EVENT_JOB_MISSED, JobEvent
from apscheduler.schedulers.background import BackgroundScheduler
from prometheus_client import start_http_server

from daemon.control import is_paused
from daemon.cycle import run_cycle
from daemon.deliver import deliver
from daemon.drift import watch
from daemon.errors import ConfigInvalid, DaemonError, TooEarly
from daemon.runtime import Runtime, stoppable
from daemon.setup import set_up
from editor import EditorError, Interrupted
from sources import SourceError
from store import StoreError, WriterLock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from daemon.config import Settings

HEARTBEAT_SECONDS = 5
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Service:
    """The running daemon.

    Args:
        settings: the configuration.
    """

    def __init__(self, settings: Settings) -> None:
        self._stop = threading.Event()
        self._runtime = Runtime(settings, stoppable(self._progress, self._stop.is_set))
        # In memory: cursors live in our tables, and two processes must not share jobs.
        self._scheduler = BackgroundScheduler(
            timezone="UTC",
            job_defaults={"misfire_grace_time": None, "coalesce": True, "max_instances": 1},
        )

    def run(self) -> None:
        """Work until a signal asks to stop.

        Raises:
            WriterBusy: another process writes this state.
            StoreError, EditorError: the state cannot be set up.
        """
        for number in STOP_SIGNALS:
            signal.signal(number, self._on_signal)
        runtime = self._runtime
        runtime.make_state_directory()
        metrics = runtime.settings.metrics
        with WriterLock(runtime.settings.state.directory), _serving(runtime, metrics.host, metrics.port):
            try:
                set_up(runtime)
            except Interrupted:
                return
            runtime.metrics.watch(runtime.database)
            runtime.metrics.publications.targets(runtime.settings.publish.names)
            self._schedule()
            self._stop.wait()
            runtime.log.info("stopping")
            self._scheduler.shutdown(wait=True)
        runtime.log.info("stopped")

    def _schedule(self) -> None:
        interval = self._runtime.settings.schedule.interval_seconds
        self._scheduler.add_listener(self._on_trouble, EVENT_JOB_ERROR | EVENT_JOB_MISSED | EVENT_JOB_MAX_INSTANCES)
        self._scheduler.add_job(self._runtime.metrics.beat, "interval", seconds=HEARTBEAT_SECONDS, id="heartbeat")
        publish = self._runtime.settings.publish
        # A second instance only finds that the first one is at work.
        self._scheduler.add_job(self._deliver, "interval", seconds=publish.retry_seconds, id="deliver", max_instances=2)
        if publish.drift_seconds:
            self._scheduler.add_job(self._watch, "interval", seconds=publish.drift_seconds, id="drift", max_instances=2)
        # The first cycle begins at once, not one interval from now.
        self._scheduler.add_job(self._cycle, "interval", seconds=interval, id="cycle", next_run_time=datetime.now(UTC))
        self._runtime.metrics.beat()
        self._scheduler.start()

    def _cycle(self) -> None:
        """One scheduled cycle; a failure is logged and counted, and the next one tries again."""
        runtime = self._runtime
        if is_paused(runtime):
            runtime.log.info("paused: no cycle")
            return
        try:
            cycle = run_cycle(runtime)
        except Interrupted as stopped:
            runtime.log.info("interrupted", reason=str(stopped))
        except TooEarly as rest:
            # Counted as an error when it was told to wait.
            runtime.log.info("waiting", detail=str(rest))
        except (SourceError, EditorError, StoreError, DaemonError) as error:
            runtime.metrics.finished(None)
            runtime.log.error("cycle failed", error=type(error).__name__, detail=str(error))
        else:
            runtime.metrics.finished(cycle)
            runtime.log.info(
                "cycle finished", cycle=cycle.id, outcome=cycle.outcome and cycle.outcome.value, detail=cycle.detail
            )

    def _deliver(self) -> None:
        """Try again what targets have not taken yet."""
        self._publishing(lambda: deliver(self._runtime))

    def _watch(self) -> None:
        """Ask engines whether they still have what they were given."""
        self._publishing(lambda: watch(self._runtime))

    def _publishing(self, work: Callable[[], object]) -> None:
        """Do it unless another thread is at it: a failure is logged, and the next time tries again."""
        runtime = self._runtime
        if not runtime.delivering.acquire(blocking=False):
            return
        try:
            work()
        except Interrupted as stopped:
            runtime.log.info("interrupted", reason=str(stopped))
        except StoreError as error:
            runtime.log.error("publishing failed", error=type(error).__name__, detail=str(error))
        finally:
            runtime.delivering.release()

    def _progress(self, stage: str, done: int, total: int) -> None:
        self._runtime.log.debug("progress", stage=stage, done=done, total=total)

    def _on_signal(self, number: int, _frame: Any) -> None:
        self._stop.set()

    def _on_trouble(self, event: JobEvent) -> None:
        """Silent trouble of the scheduler is trouble all the same."""
        self._runtime.log.error(
            "scheduler", job=event.job_id, code=event.code, error=repr(getattr(event, "exception", None))
        )


@contextmanager
def _serving(runtime: Runtime, host: str, port: int) -> Iterator[None]:
    """Metrics at ``http://host:port/metrics`` for the time of a block.

    Raises:
        ConfigInvalid: the address cannot be listened on.
    """
    try:
        server, thread = start_http_server(port, host, registry=runtime.metrics.registry)
    except OSError as error:
        raise ConfigInvalid(
            f"cannot serve metrics on {host}:{port} ({error.strerror}): set [metrics] host and port"
        ) from error
    runtime.log.info("serving metrics", host=host, port=server.server_port)
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
