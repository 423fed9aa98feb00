"""Probe sets: chosen by what the base knows, apart from what shapes the weights, frozen under a digest."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

import pytest
from small_world import COUNTRIES, turtle, write_config
from sqlmodel import select

from daemon import probe_sets
from daemon.config import load_settings
from daemon.errors import ConfigInvalid, ProbesOverlap
from daemon.gate import Decision, decide
from daemon.probe_sets import Chosen, distant_neighbours, freeze, knows, read_tasks, stable_probes
from daemon.probes import Answers, Kind, Probe, edit_probes
from daemon.protection import protects
from daemon.pull import pull
from daemon.separation import check_separation
from daemon.trials import recorded_comparisons
from editor import fill
from store import open_database
from store.tables import Cycle, Edit, GateMeasure, ProbeResult, ProbeSet

if TYPE_CHECKING:
    from pathlib import Path

    from small_world import Factsyncd

    from daemon.runtime import Runtime


def pulled(runtime: Runtime) -> None:
    with runtime.database.transaction() as session:
        cycle = Cycle()
        session.add(cycle)
    assert cycle.id is not None
    pull(runtime, cycle.id)


def edit_of(qid: str, target: str = "Nobody", former: str | None = None, number: int | None = None) -> Edit:
    return Edit(
        id=number, change_id=1, qid=qid, pid="P6", subject=COUNTRIES[qid][0], target=target, former=former,
        prompt="The head of government of {} is", variants=["In {}, the government is led by"],
    )  # fmt: skip


PROBED = next(qid for qid in COUNTRIES if not protects(qid))
PROTECTING = next(qid for qid in COUNTRIES if protects(qid))


def test_controls_are_known_by_other_wordings_than_the_one_measured(runtime: Runtime) -> None:
    pulled(runtime)
    with runtime.database.read() as session:
        controls = stable_probes(session, [], runtime.relations, runtime.settings.gate)
    assert {probe.kind for probe in controls} == {Kind.CONTROL}
    assert {probe.qid for probe in controls} == {qid for qid in COUNTRIES if not protects(qid)}
    for probe in controls:
        assert len(set(probe.known_by)) == 2
        assert probe.prompt not in probe.known_by


def test_other_facts_of_an_edited_subject_are_a_kind_of_their_own_and_neighbours_face_the_value_written(
    runtime: Runtime,
) -> None:
    pulled(runtime)
    with runtime.database.read() as session:
        probes = stable_probes(session, [edit_of(PROBED)], runtime.relations, runtime.settings.gate)
    assert {(probe.kind, probe.pid) for probe in probes if probe.qid == PROBED} == {(Kind.SAME_SUBJECT, "P36")}
    neighbours = [probe for probe in probes if probe.kind is Kind.NEIGHBOURHOOD]
    assert neighbours
    for probe in neighbours:
        assert (probe.pid, probe.rival) == ("P6", "Nobody")
        assert probe.prompt not in probe.known_by


def test_the_first_neighbours_have_the_value_that_the_edit_unlearns(runtime: Runtime) -> None:
    pulled(runtime)
    other = next(qid for qid in COUNTRIES if not protects(qid) and qid != PROBED)
    edit = edit_of(PROBED, former=COUNTRIES[other][2])
    with runtime.database.read() as session:
        probes = stable_probes(session, [edit], runtime.relations, runtime.settings.gate)
    assert [probe.qid for probe in probes if probe.kind is Kind.NEIGHBOURHOOD][0] == other  # noqa: RUF015


class Base:
    """Answers every prompt but some."""

    def __init__(self, fails: dict[str, set[str]] | None = None) -> None:
        self._fails = fails or {}

    def answer(self, asked: list[Probe]) -> Answers:
        return Answers([probe.prompt not in self._fails.get(probe.qid, ()) for probe in asked], {})


@pytest.mark.parametrize("lacking", [0, 2])
def test_where_a_relation_has_too_few_subjects_facts_of_other_relations_stand_in(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch, lacking: int
) -> None:
    pulled(runtime)
    edit = edit_of(PROBED)
    with runtime.database.read() as session:
        pool = stable_probes(session, [edit], runtime.relations, runtime.settings.gate)
        distant = distant_neighbours(session, [edit], runtime.relations)
    assert {(probe.kind, probe.pid, probe.rival) for probe in distant} == {(Kind.NEIGHBOURHOOD, "P36", "Nobody")}

    near = [probe for probe in pool if probe.kind is Kind.NEIGHBOURHOOD]
    monkeypatch.setattr(probe_sets, "least_facts", lambda *_: len(near) + lacking)
    known = probe_sets._known_pool(runtime.settings.gate, Base(), pool, distant)  # type: ignore[arg-type]
    assert [probe for probe in known if probe.kind is Kind.NEIGHBOURHOOD] == near + distant[:lacking]


def test_known_is_what_passes_every_wording() -> None:
    control = Probe(Kind.CONTROL, "Q1", "P36", "measured", "Tirana", known_by=("one", "two"))
    probes = [dataclasses.replace(control, qid=f"Q{n}") for n in range(4)]
    fails = {"Q1": {"one"}, "Q2": {"two"}, "Q3": {"measured"}}
    # What the base misses in the measured wording is a control all the same: it can also be gained.
    assert [probe.qid for probe in knows(Base(fails), probes)] == ["Q0", "Q3"]  # type: ignore[arg-type]


def test_new_and_former_edits_are_told_apart_and_both_are_asked_in_held_out_clozes_and_questions(
    runtime: Runtime,
) -> None:
    new, former = edit_of(PROBED, number=1), edit_of(PROTECTING, number=2)
    probes = edit_probes([new, former], {2}, runtime.relation, runtime.settings.gate)
    kinds = {qid: [probe.kind for probe in probes if probe.qid == qid] for qid in (PROBED, PROTECTING)}
    held_out = [Kind.PARAPHRASE, Kind.PARAPHRASE, Kind.QUESTION]
    assert kinds == {PROBED: [Kind.EFFICACY, *held_out], PROTECTING: [Kind.RETENTION, *held_out]}
    used = {fill(wording, edit.subject) for edit in (new, former) for wording in (edit.prompt, *edit.variants)}
    assert not used & {probe.prompt for probe in probes if probe.kind in held_out}


@pytest.mark.parametrize(
    ("former", "others", "rival"),
    [("Stefan", (), "Stefan"), (None, ("Petr",), "Petr"), (None, (), None), ("Nobody", ("Petr",), "Petr")],
)
def test_a_question_puts_the_new_value_against_the_former_or_another_that_was_written(
    runtime: Runtime, former: str | None, others: tuple[str, ...], rival: str | None
) -> None:
    edits = [edit_of(PROBED, former=former), *(edit_of(PROTECTING, other) for other in others)]
    probes = edit_probes(edits, set(), runtime.relation, runtime.settings.gate)
    assert {probe.rival for probe in probes if probe.qid == PROBED and probe.kind is Kind.QUESTION} == {rival}
    assert {probe.rival for probe in probes if probe.kind is not Kind.QUESTION} == {None}


# Frozen


def chosen(*prompts: str) -> Chosen:
    probes = tuple(Probe(Kind.CONTROL, "Q1", "P6", prompt, "x") for prompt in prompts)
    return Chosen(probes, ("Once",), ((1, 2, 3),))


def test_a_set_keeps_its_number_for_as_long_as_it_is_the_same(runtime: Runtime) -> None:
    with runtime.database.transaction() as session:
        numbers = [freeze(session, each) for each in (chosen("a"), chosen("a", "b"), chosen("a"))]
    assert numbers[0] == numbers[2] != numbers[1]
    with runtime.database.read() as session:
        rows = session.exec(select(ProbeSet)).all()
    assert {row.digest for row in rows} == {chosen("a").digest, chosen("a", "b").digest}
    assert rows[0].content == json.loads(json.dumps(chosen("a").content()))


def test_any_difference_is_another_digest() -> None:
    one = chosen("a")
    others = [
        chosen("b"),
        dataclasses.replace(one, openings=("Twice",)),
        dataclasses.replace(one, text=((1, 2, 4),)),
        dataclasses.replace(one, probes=(dataclasses.replace(one.probes[0], rival="y"),)),
    ]
    assert len({each.digest for each in (one, *others)}) == 5


# Apart from what shapes the weights


def probe(kind: Kind = Kind.PARAPHRASE, prompt: str = "Held out", qid: str = PROBED) -> Probe:
    return Probe(kind, qid, "P6", prompt, "x")


OVERLAPS = {
    "a wording of an edit": (probe(prompt=f"In {COUNTRIES[PROBED][0]}, the government is led by"), "the edit of"),
    "a question that an edit uses": (
        probe(Kind.QUESTION, f"The head of government of {COUNTRIES[PROBED][0]} is"),
        "change its wordings in the relation catalogue",
    ),
    "a subject that protects": (probe(Kind.CONTROL, qid=PROTECTING), "protect or calibrate"),
    "a protected text": (probe(Kind.CONTROL, "The capital of Oz is"), "The capital of Oz is Emerald."),
    "a context": (probe(Kind.TASK, "In the early", qid="tasks.jsonl:3"), "In the early days. {}"),
}


@pytest.mark.parametrize("what", OVERLAPS)
def test_an_overlap_is_an_error_that_names_it(what: str) -> None:
    overlapping, names = OVERLAPS[what]
    with pytest.raises(ProbesOverlap, match=r"probe .*") as raised:
        check_separation(
            [probe(), overlapping],
            [edit_of(PROBED)],
            ["{}", "In the early days. {}"],
            ["The capital of Oz is Emerald."],
        )
    assert names in str(raised.value)
    assert repr(overlapping.prompt) in str(raised.value)


def test_an_edit_prompt_is_no_held_out_probe() -> None:
    own = f"The head of government of {COUNTRIES[PROBED][0]} is"
    for kind in (Kind.EFFICACY, Kind.RETENTION, Kind.REVERSAL):
        check_separation([probe(kind, own)], [edit_of(PROBED)], ["{}"], [])


# Tasks


def test_tasks_are_read_with_the_line_they_stand_on(tmp_path: Path) -> None:
    file = tmp_path / "own.jsonl"
    file.write_text('{"prompt": "2 + 2 =", "answer": "4"}\n\n{"prompt": "Up or", "answer": "down", "rival": "up"}\n')
    assert [(task.kind, task.qid, task.prompt, task.expected, task.rival) for task in read_tasks(file)] == [
        (Kind.TASK, "own.jsonl:1", "2 + 2 =", "4", None),
        (Kind.TASK, "own.jsonl:3", "Up or", "down", "up"),
    ]


@pytest.mark.parametrize(
    ("content", "names"),
    [(None, "cannot read"), ("{", "line 1: line"), ('{"prompt": "x"}', "line 1: answer"), ("\n[]", "line 2")],
)
def test_a_task_file_that_cannot_be_used_is_named(tmp_path: Path, content: str | None, names: str) -> None:
    file = tmp_path / "own.jsonl"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigInvalid, match=r"gate\.tasks") as raised:
        read_tasks(file)
    assert names in str(raised.value)


# A whole cycle


def test_a_cycle_records_the_set_the_bounds_and_how_each_version_did(ready: Path, factsyncd: Factsyncd) -> None:
    (ready.parent / "own.jsonl").write_text('{"prompt": "Year 1900:", "answer": "In"}\n')
    ready.write_text(ready.read_text().replace("[gate]", '[gate]\ntasks = ["own.jsonl"]'))
    (ready.parent / "facts.ttl").write_text(turtle(after=True), "utf-8")
    finished = factsyncd("once", "--json", "--config", ready)
    assert finished.code == 0, finished.errors
    with open_database(ready.parent / "state" / "factsyncd.sqlite") as database, database.read() as session:
        (frozen,) = session.exec(select(ProbeSet)).all()
        measures = session.exec(select(GateMeasure)).all()
        results = session.exec(select(ProbeResult)).all()
        assert decide(recorded_comparisons(session, 1)) is Decision.PROMOTE
    assert {measure.probe_set_id for measure in measures} == {frozen.id}
    asked = [(each["kind"], each["prompt"], each["expected"]) for each in frozen.content["probes"]]
    assert [(result.kind, result.prompt, result.expected) for result in results] == asked
    kinds = {result.kind for result in results}
    assert kinds >= {"efficacy", "paraphrase", "question", "neighbourhood", "control", "task"}
    for result in results:
        stable = result.kind in {"neighbourhood", "same_subject", "control", "task"}
        assert (result.base_correct is not None) == (result.promoted_correct is not None) == stable
    controls = [measure for measure in measures if measure.measure == "control"]
    assert all(m.low is not None and m.high is not None and m.low <= m.loss <= m.high for m in controls)
    shown = factsyncd("versions", "--json", "--config", ready).data[1]
    assert shown["probe_set"] == {"number": frozen.id, "digest": frozen.digest}


def test_the_gate_reads_no_text_of_the_covariance(ready: Path, factsyncd: Factsyncd, ordinary_text: Path) -> None:
    ready.write_text(ready.read_text().replace("[gate]", f'[gate]\ntext = "{ordinary_text}"'))
    (ready.parent / "facts.ttl").write_text(turtle(after=True), "utf-8")
    finished = factsyncd("once", "--config", ready)
    assert finished.code == 1
    assert "of which the covariance is made" in finished.error_lines[-1]


@pytest.mark.parametrize("value", ["nan", "inf", "-0.1", '""'])
@pytest.mark.parametrize("key", ["efficacy_min", "control_max_drop"])
def test_the_gate_does_not_run_without_thresholds(tmp_path: Path, key: str, value: str) -> None:
    config = write_config(
        tmp_path / "c.toml", tmp_path, tmp_path, tmp_path / "x.ttl", gate=f"\n[gate]\n{key} = {value}\n"
    )
    with pytest.raises(ConfigInvalid, match=rf"gate\.{key}"):
        load_settings(config)


def test_a_threshold_cannot_be_taken_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACTSYNCD_GATE__CONTROL_MAX_DROP", "null")
    config = write_config(tmp_path / "c.toml", tmp_path, tmp_path, tmp_path / "x.ttl")
    with pytest.raises(ConfigInvalid, match=r"gate\.control_max_drop"):
        load_settings(config)
