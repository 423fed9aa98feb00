"""Metrics of publications: what happens in this process, and what the outbox says, read when scraped."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from prometheus_client import Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from sqlmodel import case, col, func, select

from daemon.outbox import held_by
from store.tables import Publication, PublicationState

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client import CollectorRegistry, Metric
    from sqlmodel import Session

SECONDS = (0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900)
CHECKS = ("agrees", "drifted", "unreachable")


class PublishMetrics:
    """What publishing did since the process began."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._seconds = Histogram(
            "factsyncd_publication_duration_seconds", "Duration of an attempt to publish, with its confirmation.",
            ["target"], buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self._checks = Counter(
            "factsyncd_engine_checks", "Times that the drift watch asked a target's engine, by what it found.",
            ["target", "outcome"], registry=registry,
        )  # fmt: skip

    def targets(self, names: tuple[str, ...]) -> None:
        """Begin the counters of targets at zero, so that the first drift is seen as a rise."""
        for name in names:
            for outcome in CHECKS:
                self._checks.labels(name, outcome)

    @contextmanager
    def attempt(self, target: str) -> Iterator[None]:
        """Time an attempt, also one that fails."""
        with self._seconds.labels(target).time():
            yield

    def check(self, target: str, outcome: str) -> None:
        """Count a check of the drift watch by its outcome, one of `CHECKS`."""
        self._checks.labels(target, outcome).inc()


def of_publications(session: Session) -> Iterator[Metric]:
    """What the outbox says of each target."""
    counts = GaugeMetricFamily(
        "factsyncd_publications", "Publications by target and state.", labels=["target", "state"]
    )
    failures = CounterMetricFamily(
        "factsyncd_publication_failures", "Attempts to publish that failed.", labels=["target"]
    )
    held = GaugeMetricFamily(
        "factsyncd_published_version", "Version that a target last came to answer with; -1: none.", labels=["target"]
    )
    since = GaugeMetricFamily(
        "factsyncd_publication_pending_timestamp_seconds", "Since when a target waits for a version.", labels=["target"]
    )
    grouped = select(Publication.target, Publication.state, func.count()).group_by(
        Publication.target, Publication.state
    )
    by_state = {(target, state): count for target, state, count in session.exec(grouped)}
    delivered = case((col(Publication.state) == PublicationState.DELIVERED, 1), else_=0)
    failed = select(Publication.target, func.sum(Publication.attempts - delivered)).group_by(Publication.target)
    waiting = select(Publication).where(Publication.state == PublicationState.PENDING)
    for target, count in session.exec(failed):
        failures.add_metric([target], count)
        version = held_by(session, target)
        held.add_metric([target], -1 if version is None else version)
        for state in PublicationState:
            counts.add_metric([target, state.value], by_state.get((target, state), 0))
    for publication in session.exec(waiting):
        since.add_metric([publication.target], publication.created_at.timestamp())
    yield from (counts, failures, held, since)
