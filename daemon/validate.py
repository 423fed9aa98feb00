"""Validate: load the saved candidate and measure it, the promoted version and the base on the same held-out probes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlmodel import col, delete

from daemon.errors import ProbesOverlap
from daemon.gate import Comparison, capacity, compare
from daemon.measure import OF_THE_BASE, OF_THE_PROMOTED, Measured, measure
from daemon.probe_sets import Chosen, choose, freeze
from daemon.probes import Kind
from daemon.protection import protected_texts
from daemon.recall import surroundings
from daemon.respondent import Respondent
from daemon.runtime import BASE_VERSION
from daemon.separation import check_separation
from editor import LanguageModel, file_text
from store import ArtifactCorrupt
from store.cycles import advance, current_cycle
from store.ledger import get_version, ledger_edits, promoted
from store.tables import GateMeasure, Phase, ProbeResult, Version

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from daemon.runtime import Runtime
    from store import FileRecord


def validate(runtime: Runtime, cycle_id: int) -> None:
    """Measure the candidate and record every comparison and every probe.

    Raises:
        ArtifactCorrupt: the saved candidate is damaged; it is solved again by the next call.
        ProbesOverlap: a probe is not apart from what shapes the weights.
        MeasurementInvalid: the base or the promoted version cannot be measured.
        EditorError, StoreError: a model cannot be loaded.
    """
    with runtime.database.read() as session:
        candidate = get_version(session, current_cycle(session, cycle_id).candidate_id or 0)
        present = promoted(session)
        base = get_version(session, BASE_VERSION)
    assert present is not None  # made when the state was set up
    _check_artifact(runtime, cycle_id, candidate)
    base_model = runtime.model(base)
    around = surroundings(base_model.device)
    asked_base = Respondent(runtime, base, around)
    chosen = choose(runtime, candidate, asked_base, _ordinary_text(runtime, base_model))
    _check_separation(runtime, candidate, base_model, chosen)
    # Frozen before the candidate is loaded: nothing that it answers can change what it is asked.
    with runtime.database.transaction() as session:
        probe_set = freeze(session, chosen)
    of_base = measure(asked_base, chosen, OF_THE_BASE)
    of_promoted = of_base
    if present.id != base.id:
        of_promoted = measure(Respondent(runtime, present, around), chosen, OF_THE_PROMOTED)
    asked_candidate = Respondent(runtime, candidate, around, anew=True)
    of_candidate = measure(asked_candidate, chosen, tuple(Kind), base_model)
    answers = asked_candidate.explained(chosen.probes, of_candidate.answers)
    references = {"base": of_base.measurement, "promoted": of_promoted.measurement}
    comparisons = [
        *compare(of_candidate.measurement, references, runtime.settings.gate),
        _capacity(runtime, candidate),
    ]
    results = _results(candidate, chosen, answers, of_candidate, {"base": of_base, "promoted": of_promoted})
    _record(runtime, cycle_id, candidate, probe_set, comparisons, results)


def _check_artifact(runtime: Runtime, cycle_id: int, candidate: Version) -> None:
    """Only what is on disk counts; damaged files, or foreign ones, send the cycle back to the edit phase."""
    try:
        runtime.artifacts.verify(candidate.id, candidate.digest)
        _check_unedited(runtime, candidate)
    except ArtifactCorrupt:
        with runtime.database.transaction() as session:
            advance(session, cycle_id, Phase.EDIT)
        raise


def _check_unedited(runtime: Runtime, candidate: Version) -> None:
    """An edit changes weights: with another tokenizer or configuration answers mean nothing."""
    ours, bases = (runtime.artifacts.manifest(version).files for version in (candidate.id, BASE_VERSION))
    for name in sorted(ours.keys() | bases.keys()):
        own, expected = ours.get(name), bases.get(name)
        edited = name.endswith(".safetensors") and own is not None and expected is not None
        if own != expected and not edited:
            raise ArtifactCorrupt(candidate.id, name, f"the base's ({_said(expected)})", _said(own))


def _said(record: FileRecord | None) -> str:
    return "no such file" if record is None else record.sha256


def _ordinary_text(runtime: Runtime, base_model: LanguageModel) -> Sequence[Sequence[int]]:
    """The configured file's text, else the part of the preparation's text that is not in the covariance."""
    settings = runtime.settings.gate
    if settings.text is None:
        return runtime.preparation(base_model).held_out
    if settings.text == runtime.settings.edit.text.path:
        raise ProbesOverlap(f"gate.text is {settings.text}, of which the covariance is made: give another file")
    return file_text(base_model, settings.text, settings.text_tokens)


def _check_separation(runtime: Runtime, candidate: Version, base_model: LanguageModel, chosen: Chosen) -> None:
    with runtime.database.read() as session:
        edits = ledger_edits(session, candidate.id)
    protected = protected_texts(runtime, {edit.qid for edit in edits})
    check_separation(chosen.probes, edits, runtime.preparation(base_model).contexts, protected)


def _capacity(runtime: Runtime, candidate: Version) -> Comparison:
    """What the edit phase found out about the layers, from the candidate's manifest."""
    known = runtime.artifacts.manifest(candidate.id).extra
    measured = capacity(known["load"], known["unwritten"], runtime.settings.gate.capacity_warning)
    if known["load"] > runtime.settings.gate.capacity_warning:
        runtime.log.warning("capacity", candidate=candidate.id, load=known["load"], detail=measured.detail)
    return measured


def _results(
    candidate: Version, chosen: Chosen, answers: Sequence[str], measured: Measured, others: Mapping[str, Measured]
) -> list[ProbeResult]:
    """Every probe with the candidate's answer, and how the base and the promoted version did on it."""
    passed = measured.passed()
    by_base, by_promoted = others["base"].passed(), others["promoted"].passed()
    return [
        ProbeResult(
            version_id=candidate.id, kind=probe.kind.value, qid=probe.qid, pid=probe.pid, prompt=probe.prompt,
            expected=probe.expected, rival=probe.rival, answer=answers[i], correct=passed[i],
            base_correct=by_base.get(i), promoted_correct=by_promoted.get(i),
        )
        for i, probe in enumerate(chosen.probes)
    ]  # fmt: skip


def _record(
    runtime: Runtime,
    cycle_id: int,
    candidate: Version,
    probe_set: int,
    comparisons: Sequence[Comparison],
    results: Sequence[ProbeResult],
) -> None:
    with runtime.database.transaction() as session:
        for table in (GateMeasure, ProbeResult):
            session.exec(delete(table).where(col(table.version_id) == candidate.id))
        session.add_all(
            GateMeasure(
                version_id=candidate.id, measure=c.measure, against=c.against, candidate=c.candidate,
                reference=c.reference, threshold=c.threshold, n=c.n, verdict=c.verdict.value, detail=c.detail,
                loss=c.loss, low=c.low, high=c.high, needed=c.needed, probe_set_id=probe_set,
            )
            for c in comparisons
        )  # fmt: skip
        session.add_all(results)
        advance(session, cycle_id, Phase.PROMOTE, probes=len(results))
    for comparison in comparisons:
        runtime.log.info("measured", verdict=comparison.verdict.value, detail=comparison.detail)
