"""Audit: compare a random sample of what we recorded with what the source says now.

What changed after the cursor is no drift: it will be read. Everything else that differs was missed.
"""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from sqlmodel import col, func, select

from daemon.errors import NotPossible
from daemon.metrics import AUDITED
from daemon.patience import asking
from sources import Outcome
from store.tables import Control, Fact, SourceCursor, utc_now

if TYPE_CHECKING:
    from collections.abc import Sequence

    from daemon.runtime import Runtime
    from sources import Observation, WikidataSource

Report = dict[str, Any]


def audit(runtime: Runtime, sample: int) -> Report:
    """Compare that many recorded facts, chosen at random, with the source.

    Raises:
        NotPossible: nothing is recorded yet.
        TooEarly: the source asked to be left alone for a while.
        SourceError: the source failed.
    """
    with asking(runtime, runtime.source_name):
        return _compare(runtime, runtime.open_source(), sample)


def audit_when_due(runtime: Runtime, source: WikidataSource) -> None:
    """Audit on the configured schedule, and keep the share for the metrics."""
    wanted = runtime.settings.source
    with runtime.database.read() as session:
        last = session.get(Control, AUDITED)
    if wanted.audit_sample == 0 or (
        last is not None and utc_now() - last.updated_at < timedelta(seconds=wanted.audit_seconds)
    ):
        return
    try:
        report = _compare(runtime, source, wanted.audit_sample)
    except NotPossible:
        return
    share = report["drifted"] / max(1, report["compared"])
    with runtime.database.transaction() as session:
        session.merge(Control(key=AUDITED, value=json.dumps({"drift": share}), updated_at=utc_now()))
    runtime.log.info("audited", compared=report["compared"], drifted=report["drifted"])
    for drift in report["drift"]:
        runtime.log.warning("drift", **drift)


def _compare(runtime: Runtime, source: WikidataSource, sample: int) -> Report:
    facts, cursor = _choose(runtime, sample)
    qids = list(dict.fromkeys(fact.qid for fact in facts))
    seen = {
        (one.qid, one.pid): one for page in source.observe(qids, source.replication_time()) for one in page.observations
    }
    present = {qid for qid, _ in seen}
    later = not_watched = 0
    properties: dict[str, dict[str, int]] = {}
    drift = []
    for fact in facts:
        one = seen.get((fact.qid, fact.pid))
        if one is not None and one.modified > cursor:
            later += 1
            continue
        if one is None and fact.qid in present:
            not_watched += 1  # the property, for this item
            continue
        counts = properties.setdefault(fact.pid, {"compared": 0, "drifted": 0})
        counts["compared"] += 1
        if difference := _difference(fact, one):
            counts["drifted"] += 1
            drift.append({"qid": fact.qid, "pid": fact.pid, "revision": fact.revision, "difference": difference})
    return {
        "sampled": len(facts),
        "compared": sum(counts["compared"] for counts in properties.values()),
        "drifted": len(drift),
        "changed_since": later,
        "not_watched": not_watched,
        "properties": properties,
        "drift": drift,
    }


def _choose(runtime: Runtime, sample: int) -> tuple[Sequence[Fact], datetime]:
    """Random facts of watched properties, and how far the source was read."""
    with runtime.database.read() as session:
        stored = session.get(SourceCursor, runtime.source_name)
        watched = select(Fact).where(col(Fact.pid).in_(runtime.relations))
        facts = session.exec(watched.order_by(func.random()).limit(sample)).all()
    if stored is None or not facts:
        raise NotPossible("nothing is recorded of this source yet: run `factsyncd pull` first")
    return facts, stored.modified_at


def _difference(fact: Fact, seen: Observation | None) -> str:
    """What differs between a fact and what the source says; empty if nothing does."""
    if seen is None:
        return "" if fact.gone or not fact.values else f"recorded {_told(fact)}, the item is gone"
    recorded = (fact.outcome, [(value["id"], value["label"]) for value in fact.values], fact.subject_label)
    label = seen.subject_label or fact.subject_label
    says = (seen.outcome.value, [(value.id, value.label) for value in seen.values], label)
    if seen.outcome is Outcome.AMBIGUOUS and fact.outcome == seen.outcome.value:
        return ""  # what is kept then is the last certain value
    if recorded == says:
        return ""
    named = ", ".join(f"{value.label} ({value.id})" for value in seen.values) or seen.outcome.value
    return f"recorded {_told(fact)}, the source says {label}: {named}"


def _told(fact: Fact) -> str:
    values = ", ".join(f"{value['label']} ({value['id']})" for value in fact.values)
    return f"{fact.subject_label}: {fact.outcome if fact.outcome == Outcome.AMBIGUOUS else values or fact.outcome}"
