"""Prometheus metrics; each is set where the thing it measures happens, or read from the database when scraped."""

from __future__ import annotations

import json
import math
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from sqlmodel import col, func, select

from daemon.breaker import ALL, latches
from daemon.publish_metrics import PublishMetrics, of_publications
from daemon.selection import Reason
from store import StoreError
from store.ledger import ledger_edits, promoted
from store.tables import (
    Change,
    ChangeState,
    Control,
    Fact,
    GateMeasure,
    Quarantine,
    SourceCursor,
    UnreadItem,
    Version,
    VersionState,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime

    from prometheus_client import Metric
    from sqlmodel import Session

    from store import Database
    from store.tables import Cycle, Phase

REQUEST_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
AUDITED = "audited"
"""Control: when the service last audited, and the share that had drifted."""
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
        self._replicated = Gauge(
            "factsyncd_source_replication_timestamp_seconds", "Time up to which a source is complete.", ["source"],
            registry=self.registry,
        )  # fmt: skip
        self._requests = Counter(
            "factsyncd_source_requests", "Requests to sources, by outcome.", ["outcome"], registry=self.registry
        )
        self._request_seconds = Histogram(
            "factsyncd_source_request_duration_seconds", "Duration of a request to a source.",
            buckets=REQUEST_SECONDS, registry=self.registry,
        )  # fmt: skip
        self._items = Counter("factsyncd_source_items", "Items read from the source.", registry=self.registry)
        self._opinions = Counter(
            "factsyncd_second_opinions", "Changes by what the second opinion said.", ["answer"], registry=self.registry
        )
        self._waiting = Gauge(
            "factsyncd_waiting_changes", "Settled changes that the last batch left, by what they wait for.", ["reason"],
            registry=self.registry,
        )  # fmt: skip
        self._capacity = Gauge(
            "factsyncd_ledger_capacity", "Edits that may be live; +Inf where there is no bound.", registry=self.registry
        )
        self.backlog({}, None)
        self._last_success = Gauge(
            "factsyncd_last_success_timestamp_seconds", "When a cycle last ended without an error.",
            registry=self.registry,
        )  # fmt: skip
        self.publications = PublishMetrics(self.registry)
        self._heartbeat = Gauge(
            "factsyncd_heartbeat_timestamp_seconds", "When the scheduler last ran.", registry=self.registry
        )

    @contextmanager
    def phase(self, phase: Phase) -> Iterator[None]:
        """Time a phase, also one that fails."""
        with self._phases.labels(phase.value).time():
            yield

    def replicated(self, source: str, moment: datetime) -> None:
        """Record up to when a source is complete."""
        self._replicated.labels(source).set(moment.timestamp())

    def request(self, outcome: str, seconds: float) -> None:
        """Count a request to a source."""
        self._requests.labels(outcome).inc()
        self._request_seconds.observe(seconds)

    def items(self, count: int) -> None:
        """Count items that were read."""
        self._items.inc(count)

    def second_opinion(self, answer: str, changes: int) -> None:
        """Count changes by what the second opinion said of them."""
        self._opinions.labels(answer).inc(changes)

    def backlog(self, waiting: Mapping[Reason, int], capacity: int | None) -> None:
        """Record what a batch left, and how many edits may be live (None: any number)."""
        for reason in Reason:
            self._waiting.labels(reason.value).set(waiting.get(reason, 0))
        self._capacity.set(math.inf if capacity is None else capacity)

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

    def collect(self) -> Iterator[Metric]:
        """The present state; ``factsyncd_database_up`` is 0 where it cannot be read."""
        try:
            families = list(self._read())
        except StoreError:
            yield GaugeMetricFamily("factsyncd_database_up", "Whether the database answers.", value=0)
            return
        yield GaugeMetricFamily("factsyncd_database_up", "Whether the database answers.", value=1)
        yield from families

    def _read(self) -> Iterator[Metric]:
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
            yield from _of_the_source(session)
            yield from of_publications(session)
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


def _of_the_source(session: Session) -> Iterator[GaugeMetricFamily]:
    """How far sources were read, and what of them is kept back."""
    watermark = GaugeMetricFamily(
        "factsyncd_watermark_timestamp_seconds", "Time up to which a source was read.", labels=["source"]
    )
    for cursor in session.exec(select(SourceCursor)):
        watermark.add_metric([cursor.source], cursor.modified_at.timestamp())
    yield watermark
    yield GaugeMetricFamily(
        "factsyncd_quarantined_changes", "Changes kept out of the weights.",
        value=session.exec(
            select(func.count()).select_from(Quarantine).where(col(Quarantine.released_at).is_(None))
        ).one(),
    )  # fmt: skip
    yield GaugeMetricFamily(
        "factsyncd_unread_items", "Items that the source could not tell about, to be asked for again.",
        value=session.exec(select(func.count()).select_from(UnreadItem)).one(),
    )  # fmt: skip
    breakers = GaugeMetricFamily(
        "factsyncd_breaker_tripped", "Whether the rate breaker holds a property's changes.", labels=["property"]
    )
    tripped = {latch.property for latch in latches(session)}
    for name in [ALL, *session.exec(select(Fact.pid).distinct().order_by(Fact.pid))]:
        breakers.add_metric([name], name in tripped)
    yield breakers
    audited = session.get(Control, AUDITED)
    if audited is not None:
        yield GaugeMetricFamily(
            "factsyncd_audit_drift_ratio", "Share of the facts last audited that differ from the source.",
            value=json.loads(audited.value)["drift"],
        )  # fmt: skip
