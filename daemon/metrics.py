"""Prometheus metrics; each is set where the thing it measures happens, or read from the database when scraped."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from sqlmodel import col, func, select

from store import StoreError
from store.ledger import ledger_edits, promoted
from store.tables import Change, ChangeState, GateMeasure, Version, VersionState

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from store import Database
    from store.tables import Cycle, Phase

PHASE_SECONDS = (0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600, 14400)


class Metrics:
    """The process's metrics, in a registry of their own."""

    def __init__(self, version: str) -> None:
        self.registry = CollectorRegistry()
        self._build = Info("factsyncd_build", "Build of the running daemon.", registry=self.registry)
        self._build.info({"version": version})
        self._cycles = Counter("factsyncd_cycles", "Cycles finished, by outcome.", ["outcome"], registry=self.registry)
        self._phases = Histogram(
            "factsyncd_phase_duration_seconds", "Duration of a phase.", ["phase"],
            buckets=PHASE_SECONDS, registry=self.registry,
        )  # fmt: skip
        self._watermark = Gauge(
            "factsyncd_watermark_timestamp_seconds", "Time up to which a source was read.", ["source"],
            registry=self.registry,
        )  # fmt: skip
        self._last_success = Gauge(
            "factsyncd_last_success_timestamp_seconds", "When a cycle last ended without an error.",
            registry=self.registry,
        )  # fmt: skip
        self._heartbeat = Gauge(
            "factsyncd_heartbeat_timestamp_seconds", "When the scheduler last ran.", registry=self.registry
        )

    @contextmanager
    def phase(self, phase: Phase) -> Iterator[None]:
        """Time a phase, also one that fails."""
        with self._phases.labels(phase.value).time():
            yield

    def watermark(self, source: str, moment: datetime) -> None:
        """Record how far a source was read."""
        self._watermark.labels(source).set(moment.timestamp())

    def finished(self, cycle: Cycle | None) -> None:
        """Count a cycle; None is one that failed."""
        if cycle is None or cycle.outcome is None:
            self._cycles.labels("error").inc()
            return
        self._cycles.labels(cycle.outcome.value).inc()
        self._last_success.set_to_current_time()

    def beat(self) -> None:
        """The scheduler lives."""
        self._heartbeat.set(time.time())

    def watch(self, database: Database) -> None:
        """Also export what the database holds, read at each scrape."""
        self.registry.register(StateCollector(database))


class StateCollector(Collector):
    """Gauges over the recorded state."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def describe(self) -> list[GaugeMetricFamily]:
        """Nothing is read at registration."""
        return []

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The present state; ``factsyncd_database_up`` is 0 where it cannot be read."""
        try:
            families = list(self._read())
        except StoreError:
            yield GaugeMetricFamily("factsyncd_database_up", "Whether the database answers.", value=0)
            return
        yield GaugeMetricFamily("factsyncd_database_up", "Whether the database answers.", value=1)
        yield from families

    def _read(self) -> Iterator[GaugeMetricFamily]:
        with self._database.read() as session:
            counts = dict(session.exec(select(Change.state, func.count()).group_by(Change.state)).all())
            version = promoted(session)
            live = 0 if version is None else len(ledger_edits(session, version.id))
            newest = session.exec(
                select(Version).where(Version.state != VersionState.CANDIDATE).order_by(col(Version.id).desc())
            ).first()
            measures = (
                []
                if newest is None
                else session.exec(select(GateMeasure).where(GateMeasure.version_id == newest.id)).all()
            )
        changes = GaugeMetricFamily("factsyncd_changes", "Changes by state.", labels=["state"])
        for state in ChangeState:
            changes.add_metric([state.value], counts.get(state, 0))
        yield changes
        yield GaugeMetricFamily(
            "factsyncd_promoted_version", "Number of the promoted version.",
            value=-1 if version is None else version.id,
        )  # fmt: skip
        yield GaugeMetricFamily("factsyncd_ledger_edits", "Edits live in the promoted version.", value=live)
        quality = GaugeMetricFamily(
            "factsyncd_gate_measure", "What the gate last measured.", labels=["measure", "against"]
        )
        for measure in measures:
            if measure.candidate is not None:
                quality.add_metric([measure.measure, measure.against], measure.candidate)
        yield quality
