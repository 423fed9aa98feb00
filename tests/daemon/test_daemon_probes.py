"""Probes: chosen by what the base knows, apart from what shapes the weights and from what is measured."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest
from small_world import COUNTRIES

from daemon import validate
from daemon.probes import Kind, Probe, stable_probes
from daemon.protection import protects
from daemon.pull import pull
from daemon.validate import _knows
from store.tables import Cycle, Edit

if TYPE_CHECKING:
    from daemon.runtime import Runtime


def pulled(runtime: Runtime) -> None:
    with runtime.database.transaction() as session:
        cycle = Cycle()
        session.add(cycle)
    assert cycle.id is not None
    pull(runtime, cycle.id)


def test_controls_are_known_by_other_wordings_than_the_one_measured(runtime: Runtime) -> None:
    pulled(runtime)
    with runtime.database.read() as session:
        controls = stable_probes(session, [], runtime.relations, runtime.settings.gate)
    assert {probe.kind for probe in controls} == {Kind.CONTROL}
    assert {probe.qid for probe in controls} == {qid for qid in COUNTRIES if not protects(qid)}
    for probe in controls:
        assert len(set(probe.known_by)) == 2
        assert probe.prompt not in probe.known_by


def test_a_fact_of_an_edited_subject_is_no_control_and_a_neighbour_is_known_by_itself(runtime: Runtime) -> None:
    pulled(runtime)
    edited = next(qid for qid in COUNTRIES if not protects(qid))
    edit = Edit(change_id=1, qid=edited, pid="P6", subject=COUNTRIES[edited][0], target="Nobody.", prompt="In {}")
    with runtime.database.read() as session:
        probes = stable_probes(session, [edit], runtime.relations, runtime.settings.gate)
    assert {probe.kind for probe in probes} == {Kind.CONTROL, Kind.NEIGHBOURHOOD}
    assert edited not in {probe.qid for probe in probes}
    for probe in probes:
        if probe.kind is Kind.NEIGHBOURHOOD:
            assert (probe.known_by, probe.rival) == ((probe.prompt,), "Nobody.")


def test_known_is_what_passes_every_wording(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    control = Probe(Kind.CONTROL, "Q1", "P36", "measured", "Tirana", known_by=("one", "two"))
    probes = [dataclasses.replace(control, qid=f"Q{n}") for n in range(4)]
    fails = {"Q1": {"one"}, "Q2": {"two"}, "Q3": {"measured"}}

    def answered(_model: object, asked: list[Probe], _progress: object) -> list[bool]:
        return [probe.prompt not in fails.get(probe.qid, ()) for probe in asked]

    monkeypatch.setattr(validate, "answer", answered)
    # What the base misses in the measured wording is a control all the same: it can also be gained.
    assert [probe.qid for probe in _knows(runtime, None, probes)] == ["Q0", "Q3"]  # type: ignore[arg-type]
