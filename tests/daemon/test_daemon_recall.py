"""Recall: what a version was asked is not asked again; only a candidate is measured anew, whatever is known."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from small_world import turtle
from sqlmodel import select

from daemon import recall, respondent
from daemon.config import load_settings
from daemon.cycle import run_cycle
from daemon.probes import Kind, Probe
from daemon.recall import Recall, surroundings
from daemon.respondent import Respondent
from daemon.runtime import Runtime
from daemon.validate import validate
from editor import Reading
from store import ArtifactCorrupt
from store.cycles import current_cycle
from store.ledger import get_version
from store.tables import Cycle, GateMeasure, Outcome, Phase, ProbeResult, Version, key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

DIGEST, AROUND = "a" * 64, "this machine"
CONTROL = Probe(Kind.CONTROL, "Q1", "P36", "The capital of Albania is", "Tirana")
RIVAL = dataclasses.replace(CONTROL, kind=Kind.NEIGHBOURHOOD, rival="Oslo")
WRITTEN = Probe(Kind.REVERSAL, "Q1", "P36", CONTROL.prompt, "")
READ = [Reading(3, 2.5, 0.25), Reading(2, float("inf"), 0.0)]


def test_what_was_kept_is_known_to_another_process(tmp_path: Path) -> None:
    first = Recall(tmp_path / "new", DIGEST, AROUND)
    first.keep_answers([CONTROL, RIVAL], 8, [(True, None), (False, None)])
    first.keep_answers([WRITTEN], 8, [(False, "Tirana")])
    first.keep_readings([(1, 2, 3), (4, 5)], READ)
    first.keep_texts(["Once"], 4, 0, [[7, 8]])
    second = Recall(tmp_path / "new", DIGEST, AROUND)
    assert second.answers([WRITTEN, RIVAL, CONTROL], 8) == [(False, "Tirana"), (False, None), (True, None)]
    assert second.readings([(1, 2, 3), (4, 5)]) == READ
    assert second.texts(["Once"], 4, 0) == [[7, 8]]


@pytest.mark.parametrize(("digest", "around"), [("b" * 64, AROUND), (DIGEST, "another machine")])
def test_another_version_and_another_machine_know_nothing(tmp_path: Path, digest: str, around: str) -> None:
    first = Recall(tmp_path, DIGEST, around=AROUND)
    first.keep_answers([CONTROL], 8, [(True, None)])
    assert Recall(tmp_path, digest, around).answers([CONTROL], 8) == [None]


def test_an_answer_depends_on_the_question_and_not_on_what_it_is_asked_for(tmp_path: Path) -> None:
    known = Recall(tmp_path, DIGEST, AROUND)
    new_edit = dataclasses.replace(CONTROL, kind=Kind.EFFICACY)
    known.keep_answers([new_edit, WRITTEN], 8, [(True, None), (False, "Tirana")])
    assert known.answers([dataclasses.replace(new_edit, kind=Kind.RETENTION)], 12) == [(True, None)]
    others = [dataclasses.replace(CONTROL, **{name: "Oslo"}) for name in ("prompt", "expected", "rival")]
    assert known.answers([*others, dataclasses.replace(WRITTEN, expected="x")], 8) == [None] * 4
    # Of the model's own words there may be more.
    assert known.answers([WRITTEN], 12) == [None]
    assert known.texts(["Once"], 4, 0) is None
    assert known.readings([(1, 2)]) is None


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"answers": 3}', b"\xff"])
def test_a_damaged_file_is_only_a_lost_computation(tmp_path: Path, damage: bytes) -> None:
    Recall(tmp_path, DIGEST, AROUND).keep_answers([CONTROL], 8, [(True, None)])
    (file,) = tmp_path.iterdir()
    file.write_bytes(damage)
    again = Recall(tmp_path, DIGEST, AROUND)
    assert again.answers([CONTROL], 8) == [None]
    again.keep_answers([CONTROL], 8, [(True, None)])
    assert Recall(tmp_path, DIGEST, AROUND).answers([CONTROL], 8) == [(True, None)]


def test_it_is_bounded_and_forgets_what_is_oldest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ANSWERS", "TEXTS", "VERSIONS"):
        monkeypatch.setattr(recall, name, 2)
    known = Recall(tmp_path, "0", AROUND)
    probes = [dataclasses.replace(CONTROL, expected=str(n)) for n in range(3)]
    for probe in (*probes[:2], probes[0], probes[2]):
        known.keep_answers([probe], 8, [(True, None)])
    assert known.answers(probes, 8) == [(True, None), None, (True, None)]
    for n in range(3):
        known.keep_texts(["Once"], n, 0, [[n]])
    assert [known.texts(["Once"], n, 0) for n in range(3)] == [None, [[1]], [[2]]]
    for digest in "12":
        Recall(tmp_path, digest, AROUND).keep_answers([CONTROL], 8, [(True, None)])
    assert len(list(tmp_path.iterdir())) == 2
    assert Recall(tmp_path, "0", AROUND).answers(probes, 8) == [None] * 3


def test_surroundings_are_the_same_each_time_and_name_the_threads() -> None:
    here = surroundings(torch.device("cpu"))
    assert here == surroundings(torch.device("cpu"))
    assert f"{torch.get_num_threads()} threads" in here


# In a state with a real, tiny model


@pytest.fixture
def state(ready: Path) -> Iterator[Runtime]:
    """A state whose next cycle has a candidate with artifact, and nothing measured."""
    (ready.parent / "facts.ttl").write_text(turtle(after=True), "utf-8")
    made = Runtime(load_settings(ready))
    run_cycle(made, until=Phase.VALIDATE)
    yield made
    made.database.close()


@dataclasses.dataclass
class Calls:
    """What models were asked since the last look."""

    counts: dict[str, int]

    def take(self) -> dict[str, int]:
        found = {name: count for name, count in self.counts.items() if count}
        self.counts.clear()
        return found


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    made = Calls({})

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(model: object, asked: list[object], *rest: Any) -> Any:
            made.counts[name] = made.counts.get(name, 0) + len(asked)
            return function(model, asked, *rest)

        return call

    for name in ("answer", "readings", "continuations"):
        monkeypatch.setattr(respondent, name, counted(name, getattr(respondent, name)))
    return made


def cycle_of(runtime: Runtime) -> int:
    with runtime.database.read() as session:
        return key(session.exec(select(Cycle).where(Cycle.phase != Phase.DONE)).one())


def measured(runtime: Runtime) -> tuple[list[Any], list[Any]]:
    with runtime.database.read() as session:
        measures = session.exec(select(GateMeasure)).all()
        results = session.exec(select(ProbeResult)).all()
    return (
        [each.model_dump(exclude={"id", "recorded_at"}) for each in measures],
        [each.model_dump(exclude={"id", "recorded_at"}) for each in results],
    )


def test_only_the_candidate_is_measured_again_and_the_figures_are_the_same(state: Runtime, calls: Calls) -> None:
    cycle = cycle_of(state)
    validate(state, cycle)
    first, asked = measured(state), calls.take()
    assert set(asked) == {"answer", "readings", "continuations"}
    state.forget_models()
    validate(state, cycle)
    again = calls.take()
    assert measured(state) == first
    candidate_only = sum(1 for result in first[1])
    assert again["answer"] == candidate_only < asked["answer"]
    assert again["readings"] * 2 == asked["readings"]
    assert again["continuations"] * 2 == asked["continuations"]


def test_a_model_is_loaded_only_for_what_is_not_known(state: Runtime) -> None:
    with state.database.read() as session:
        base, candidate = (get_version(session, number) for number in (0, 1))
    Respondent(state, candidate, AROUND).answer([CONTROL])
    state.forget_models()
    known = Respondent(state, candidate, AROUND)
    answered = known.answer([CONTROL])
    assert not state._loaded
    assert known.answer([CONTROL, RIVAL]).passed[:1] == answered.passed
    assert set(state._loaded) == {1}
    assert Respondent(state, base, AROUND, anew=True).own_words([CONTROL.prompt]) == (
        Respondent(state, base, AROUND).own_words([CONTROL.prompt])
    )


@pytest.mark.parametrize("wrong", ["other", "missing", "further"])
def test_a_sealed_artifact_with_another_tokenizer_is_refused_and_made_anew(state: Runtime, wrong: str) -> None:
    cycle = cycle_of(state)
    with state.database.read() as session:
        candidate = get_version(session, current_cycle(session, cycle).candidate_id or 0)
    name = _reseal(state, candidate, wrong)
    with pytest.raises(ArtifactCorrupt, match=rf"{name}: expected .*, found "):
        validate(state, cycle)
    with state.database.read() as session:
        assert current_cycle(session, cycle).phase is Phase.EDIT
    assert run_cycle(state).outcome is Outcome.PROMOTED
    state.artifacts.verify(candidate.id)


def _reseal(runtime: Runtime, candidate: Version, wrong: str) -> str:
    """Give the candidate another tokenizer, and a manifest and a record that agree with it; the file's name."""
    artifacts = runtime.artifacts
    with artifacts.stage(candidate.id) as staging:
        for file in artifacts.path(candidate.id).iterdir():
            if file.name != "MANIFEST.json":
                (staging / file.name).write_bytes(file.read_bytes())
        name = "merges.txt" if wrong == "further" else "tokenizer.json"
        if wrong == "missing":
            (staging / name).unlink()
        elif wrong == "further":
            (staging / name).write_text("a b\n")
        else:
            content = json.loads((staging / name).read_text("utf-8"))
            content["normalizer"] = {"type": "Lowercase"}
            (staging / name).write_text(json.dumps(content), "utf-8")
        digest = artifacts.seal(staging, candidate.id, extra=artifacts.manifest(candidate.id).extra)
    with runtime.database.transaction() as session:
        get_version(session, candidate.id).digest = digest
    return name
