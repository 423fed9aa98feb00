"""Validate: load the saved candidate and measure it, the promoted version and the base on the same held-out probes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from sqlmodel import col, delete

from daemon.gate import Comparison, Measurement, capacity, compare
from daemon.probes import Kind, Probe, Result, answer, edit_probes, explain, stable_probes
from daemon.runtime import BASE_VERSION
from editor import LanguageModel, file_text, perplexity
from store import ArtifactCorrupt
from store.cycles import advance, current_cycle
from store.ledger import get_version, ledger_edits, promoted
from store.tables import GateMeasure, Phase, ProbeResult, Version

if TYPE_CHECKING:
    from collections.abc import Sequence

    from daemon.runtime import Runtime


def validate(runtime: Runtime, cycle_id: int) -> None:
    """Measure the candidate and record every comparison and every probe.

    Raises:
        ArtifactCorrupt: the saved candidate is damaged; it is solved again by the next call.
        EditorError, StoreError: a model cannot be loaded.
    """
    settings = runtime.settings.gate
    with runtime.database.read() as session:
        candidate = get_version(session, current_cycle(session, cycle_id).candidate_id or 0)
        present = promoted(session)
        base = get_version(session, BASE_VERSION)
        edits = ledger_edits(session, candidate.id)
        pool = stable_probes(session, edits, runtime.relations, settings)
    assert present is not None  # made when the state was set up
    _check_artifact(runtime, cycle_id, candidate)
    base_model = runtime.model(base)
    text = _ordinary_text(runtime, base_model)
    stable = _known_to_base(runtime, base_model, pool)
    probes = [*edit_probes(edits, runtime.relation, settings), *stable]
    tokens = sum(len(window) - 1 for window in text)

    def measure(version: Version, asked: Sequence[Probe]) -> tuple[Measurement, list[bool]]:
        model = runtime.model(version)
        passed = answer(model, asked, runtime.progress)
        return _measurement(asked, passed, perplexity(model, text, runtime.progress), tokens), passed

    # Only what may drop is compared; the edits' own probes have floors.
    references = {"base": measure(base, stable)[0]}
    references["promoted"] = references["base"] if present.id == base.id else measure(present, stable)[0]
    measured, passed = measure(candidate, probes)
    results = explain(runtime.model(candidate), probes, passed, runtime.settings.diff.answer_tokens, runtime.progress)
    comparisons = [*compare(measured, references, settings), _capacity(runtime, candidate)]
    _record(runtime, cycle_id, candidate, comparisons, results)


def _check_artifact(runtime: Runtime, cycle_id: int, candidate: Version) -> None:
    """Only what is on disk counts; damaged files send the cycle back to the edit phase."""
    try:
        runtime.artifacts.verify(candidate.id, candidate.digest)
    except ArtifactCorrupt:
        with runtime.database.transaction() as session:
            advance(session, cycle_id, Phase.EDIT)
        raise


def _ordinary_text(runtime: Runtime, base_model: LanguageModel) -> list[list[int]]:
    """The configured file's text, else the part of the preparation's text that is not in the covariance."""
    settings = runtime.settings.gate
    if settings.text is not None:
        return file_text(base_model, settings.text, settings.text_tokens)
    return [list(window) for window in runtime.preparation(base_model).held_out]


def _capacity(runtime: Runtime, candidate: Version) -> Comparison:
    """What the edit phase found out about the layers, from the candidate's manifest."""
    known = runtime.artifacts.manifest(candidate.id).extra
    measured = capacity(known["load"], known["unwritten"], runtime.settings.gate.capacity_warning)
    if known["load"] > runtime.settings.gate.capacity_warning:
        runtime.log.warning("capacity", candidate=candidate.id, load=known["load"], detail=measured.detail)
    return measured


def _known_to_base(runtime: Runtime, base_model: LanguageModel, pool: Sequence[Probe]) -> list[Probe]:
    """The first stable probes of each kind that the base knows: only what it knows can be lost."""
    wanted = {
        Kind.NEIGHBOURHOOD: runtime.settings.gate.neighbourhood_probes,
        Kind.CONTROL: runtime.settings.gate.control_probes,
    }
    chosen: list[Probe] = []
    for kind, limit in wanted.items():
        known: list[Probe] = []
        of_kind = [probe for probe in pool if probe.kind is kind]
        for start in range(0, len(of_kind), limit):
            known += _knows(runtime, base_model, of_kind[start : start + limit])
            if len(known) >= limit:
                break
        chosen += known[:limit]
    return chosen


def _knows(runtime: Runtime, base_model: LanguageModel, probes: Sequence[Probe]) -> list[Probe]:
    """The probes of which the base passes every wording in ``known_by``."""
    known = list(probes)
    for wording in range(max((len(probe.known_by) for probe in probes), default=0)):
        asked = [replace(probe, prompt=probe.known_by[wording]) for probe in known]
        passed = answer(base_model, asked, runtime.progress)
        known = [probe for probe, ok in zip(known, passed, strict=True) if ok]
    return known


def _measurement(probes: Sequence[Probe], passed: Sequence[bool], text_perplexity: float, tokens: int) -> Measurement:
    """Shares per kind with the fact as sampling unit: a fact's probes count for one fact together."""
    by_fact: dict[str, dict[tuple[str, str], list[bool]]] = {}
    for probe, ok in zip(probes, passed, strict=True):
        by_fact.setdefault(probe.kind.value, {}).setdefault((probe.qid, probe.pid), []).append(ok)
    shares = {kind: sum(sum(oks) / len(oks) for oks in facts.values()) / len(facts) for kind, facts in by_fact.items()}
    return Measurement(shares, {kind: len(facts) for kind, facts in by_fact.items()}, text_perplexity, tokens)


def _record(
    runtime: Runtime,
    cycle_id: int,
    candidate: Version,
    comparisons: Sequence[Comparison],
    results: Sequence[Result],
) -> None:
    with runtime.database.transaction() as session:
        for table in (GateMeasure, ProbeResult):
            session.exec(delete(table).where(col(table.version_id) == candidate.id))
        session.add_all(
            GateMeasure(
                version_id=candidate.id, measure=c.measure, against=c.against, candidate=c.candidate,
                reference=c.reference, threshold=c.threshold, n=c.n, verdict=c.verdict.value, detail=c.detail,
            )
            for c in comparisons
        )  # fmt: skip
        session.add_all(
            ProbeResult(
                version_id=candidate.id, kind=r.probe.kind.value, qid=r.probe.qid, pid=r.probe.pid,
                prompt=r.probe.prompt, expected=r.probe.expected, answer=r.answer, correct=r.correct,
            )
            for r in results
        )  # fmt: skip
        advance(session, cycle_id, Phase.PROMOTE, probes=len(results))
    for comparison in comparisons:
        runtime.log.info("measured", verdict=comparison.verdict.value, detail=comparison.detail)
