"""Calibration of a model nobody has settings for: a tiny Llama trained here on facts in several wordings."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from knowing_model import DEPTH, WORDINGS, facts

from editor import Calibration, KnownFact, LanguageModel, SettingsInvalid, TextSource, calibrate, scores
from editor.calibration import RECOMMENDED, TOLERANCE, choice, last_layers, search, window
from editor.preparation import prepare
from editor.requests import fill
from editor.trials import Trial, Trials, checked_settings, choose_task
from editor.value_cache import ValueCache

OVERRIDES = {"steps": 20, "turns": 1, "contexts": 0, "covariance_tokens": 2500, "passes": 2, "clamp": 2.0}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> TextSource:
    """Ordinary text is what it was trained on."""
    file = tmp_path_factory.mktemp("text") / "text.txt"
    lines = [f"{fill(fact.paraphrases[0], fact.subject)} {fact.answer}." for _ in range(12) for fact in facts()]
    file.write_text("\n".join(lines), "utf-8")
    return TextSource(kind="file", path=file)


@pytest.fixture(scope="module")
def found(trained: LanguageModel, text: TextSource, tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    return calibrate(trained, facts(), text, tmp_path_factory.mktemp("preparation"), OVERRIDES)


def test_the_model_knows_its_facts(trained: LanguageModel) -> None:
    known = scores(trained, [(fill(fact.prompt, fact.subject), fact.answer) for fact in facts()])
    assert sum(score.greedy for score in known) > 0.9 * len(facts())


def test_it_comes_within_two_points_of_a_sweep_by_hand(
    trained: LanguageModel, text: TextSource, found: Calibration, tmp_path: Path
) -> None:
    """The sweep tries every window of layers below the model's last, and strengths over six decades."""
    shared = RECOMMENDED | OVERRIDES
    settings = checked_settings(trained, shared, tuple(range(DEPTH - 1)), 1.0)
    preparation = prepare(trained, settings, text, tmp_path)
    attempt = Trials(trained, choose_task(trained, facts()), shared, preparation, ValueCache(tmp_path / "values"))
    swept = [
        attempt(window(top, width), 10 ** (power / 2))
        for top in range(DEPTH - 1)
        for width in range(1, top + 2)
        for power in range(12)
    ]
    optimum = max(trial.score for trial in swept)
    assert optimum > 0.5, "a sweep that finds nothing proves nothing"
    assert found.chosen.score > optimum - 0.02
    assert len(found.trials) < len(swept) / 2


def test_the_settings_are_the_chosen_trials(found: Calibration) -> None:
    assert found.settings.layers == found.chosen.layers
    assert found.settings.covariance_weight == found.chosen.covariance_weight
    assert found.settings.clamp == OVERRIDES["clamp"]
    assert all(0 <= trial.score <= 1 for trial in found.trials)
    assert len({(trial.layers, trial.covariance_weight) for trial in found.trials}) == len(found.trials)


def test_of_trials_as_good_as_the_best_the_one_that_reads_best_is_chosen() -> None:
    best = Trial((3,), 10.0, 1.0, 1.0, 1.0, 0.90)
    gentler = Trial((3,), 100.0, 0.98, 1.0, 1.0, 0.91)
    weak = Trial((3,), 1000.0, 0.5, 1.0, 1.0, 1.0)
    assert best.score - TOLERANCE < gentler.score < best.score
    assert choice([best, gentler, weak]) is gentler


def test_the_search_goes_on_beyond_its_strengths_while_that_gains() -> None:
    def attempt(layers: tuple[int, ...], weight: float) -> Trial:
        share = max(0.1, 1 - abs(math.log10(weight) - 5.5) / 10 - abs(layers[-1] - 7) / 100)
        return Trial(layers, weight, share, share, share, share)

    best = max(search(attempt, [2, 5, 9]), key=lambda trial: trial.score)
    assert best.layers[-1] == 7, "halfway between two that were tried"
    assert 1e5 <= best.covariance_weight <= 1e6


def test_a_model_of_one_block_has_no_layers_to_edit() -> None:
    assert last_layers(2) == [0]
    with pytest.raises(SettingsInvalid, match="one at least must lie above"):
        last_layers(1)


def test_edited_facts_are_given_another_answer_and_leave_their_neighbours_alone(trained: LanguageModel) -> None:
    task = choose_task(trained, facts())
    assert task == choose_task(trained, facts()[::-1]), "the order of the facts must not matter"
    answers = {relation: {fact.answer for fact in facts() if fact.relation == relation} for relation in WORDINGS}
    for fact, new in task.edits:
        assert new != fact.answer
        assert new in answers[fact.relation]
    assert not {fact.subject for fact, _ in task.edits} & {fact.subject for fact in task.neighbours}


def test_too_few_known_facts_are_an_error_that_says_how_many(
    trained: LanguageModel, text: TextSource, tmp_path: Path
) -> None:
    wrong = [KnownFact("city", fact.prompt, fact.subject, "river", fact.paraphrases) for fact in facts()]
    with pytest.raises(SettingsInvalid, match=r"answers 0 of 48 facts.* needs 12"):
        calibrate(trained, wrong[::2] + wrong[1::2], text, tmp_path, OVERRIDES)


def test_an_interruption_leaves_the_weights_alone(trained: LanguageModel, text: TextSource, tmp_path: Path) -> None:
    before = {name: tensor.clone() for name, tensor in trained.model.state_dict().items()}

    class Stop(Exception):
        pass

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "calibration" and done == 3:
            raise Stop

    with pytest.raises(Stop):
        calibrate(trained, facts(), text, tmp_path, OVERRIDES, progress=stop)
    for name, tensor in trained.model.state_dict().items():
        assert torch.equal(tensor, before[name])
