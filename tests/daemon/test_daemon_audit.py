"""Audit: what differs from the source and did not change since is drift; the rest is not."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from living_wiki import LivingWiki, in_process
from observations import LEADER, Book, moment
from sqlmodel import select

from daemon.audit import audit
from daemon.errors import NotPossible
from daemon.metrics import Metrics
from daemon.pull import pull
from store.tables import Fact

if TYPE_CHECKING:
    from daemon.runtime import Runtime


@pytest.fixture
def wiki(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> LivingWiki:
    """Twenty countries, read."""
    wiki, opener = in_process()
    for number in range(1, 21):
        wiki.name(f"Q{100 + number}", f"Head {number}")
        wiki.put(f"Q{number}", f"Country {number}", 100 + number, moment(-24), [(LEADER, f"Q{100 + number}")])
    make = opener(runtime.relations.values(), overlap=timedelta(0), lag=timedelta(0))
    monkeypatch.setattr(runtime, "open_source", make)
    wiki.clock(moment(0)).flush()
    pull(runtime, Book(runtime.database).cycle_id)
    return wiki


def test_what_is_as_recorded_has_not_drifted(wiki: LivingWiki, runtime: Runtime) -> None:
    report = audit(runtime, 500)
    assert (report["sampled"], report["compared"], report["drifted"]) == (20, 20, 0)
    assert report["properties"] == {LEADER: {"compared": 20, "drifted": 0}}
    assert audit(runtime, 7)["compared"] == 7


def test_values_labels_and_lost_items_drift(wiki: LivingWiki, runtime: Runtime) -> None:
    with runtime.database.transaction() as session:
        facts = {fact.qid: fact for fact in session.exec(select(Fact))}
        facts["Q1"].values = [{"kind": "item", "id": "Q999", "label": "Head 1"}]
        facts["Q2"].values = [{"kind": "item", "id": "Q102", "label": "Another"}]
        facts["Q3"].subject_label = "Another"
    wiki.delete("Q4").flush()
    report = audit(runtime, 500)
    assert {drift["qid"] for drift in report["drift"]} == {"Q1", "Q2", "Q3", "Q4"}
    assert report["properties"] == {LEADER: {"compared": 20, "drifted": 4}}
    told = {drift["qid"]: drift["difference"] for drift in report["drift"]}
    assert "Q999" in told["Q1"]
    assert "the source says Country 1: Head 1 (Q101)" in told["Q1"]
    assert "gone" in told["Q4"]


def test_what_changed_after_the_cursor_is_no_drift(wiki: LivingWiki, runtime: Runtime) -> None:
    wiki.put("Q1", "Country 1", 900, moment(5), [(LEADER, "Q105")]).flush()
    report = audit(runtime, 500)
    assert (report["compared"], report["drifted"], report["changed_since"]) == (19, 0, 1)


def test_the_service_audits_when_it_is_due_and_exports_the_share(wiki: LivingWiki, runtime: Runtime) -> None:
    with runtime.database.transaction() as session:
        session.get_one(Fact, ("Q1", LEADER)).values = []
    source = runtime.settings.source.model_copy(update={"audit_sample": 500})
    runtime.settings = runtime.settings.model_copy(update={"source": source})
    metrics = Metrics("1")
    metrics.watch(runtime.database)
    assert metrics.registry.get_sample_value("factsyncd_audit_drift_ratio") is None
    pull(runtime, 1)
    assert metrics.registry.get_sample_value("factsyncd_audit_drift_ratio") == pytest.approx(1 / 20)
    with runtime.database.transaction() as session:
        session.get_one(Fact, ("Q2", LEADER)).values = []
    pull(runtime, 1)
    assert metrics.registry.get_sample_value("factsyncd_audit_drift_ratio") == pytest.approx(1 / 20), "not yet due"


def test_without_anything_recorded_there_is_nothing_to_audit(runtime: Runtime) -> None:
    with pytest.raises(NotPossible, match="factsyncd pull"):
        audit(runtime, 10)
