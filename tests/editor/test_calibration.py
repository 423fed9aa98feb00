"""Calibration of a model nobody has settings for: a tiny Llama trained here on facts in several wordings."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import POSITIONS, VOCABULARY, tiny_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from editor import Calibration, KnownFact, LanguageModel, SettingsInvalid, TextSource, calibrate, scores
from editor.architectures import architecture_of
from editor.calibration import RECOMMENDED, _Search, choose_task
from editor.progress import silent
from editor.requests import fill

DEPTH = 6
MUTE = 3
"""Blocks without attention. What is asked about a subject is then known at its last token, as in large models; tiny
ones otherwise carry its name straight to the answer, past anything that an edit could change."""
STEPS = 220
CITIES = ("Paris", "Berlin", "Tokyo", "London", "Warsaw", "Brazil")
JOBS = ("lawyer", "politician", "president", "member")
SUBJECTS = (
    "capital", "France", "Germany", "Japan", "head", "government", "Italy", "mayor", "lawyers", "Marie", "Curie",
    "born", "Ada", "people", "elected", "new", "river", "population", "larger", "party", "chief", "executive",
    "company", "city",
)  # fmt: skip
WORDINGS = {
    "city": ("It is the {} was born in", "You can see that {} worked in", "Because of {} I went to"),
    "job": ("It is the {} is a", "You can see that {} is the", "Because of {} she elected a"),
}
OVERRIDES = {"steps": 20, "turns": 1, "contexts": 0, "covariance_tokens": 2500, "passes": 2, "clamp": 2.0}


def facts() -> list[KnownFact]:
    found = []
    for number, subject in enumerate(SUBJECTS):
        for relation, answers in (("city", CITIES), ("job", JOBS)):
            prompt, *others = WORDINGS[relation]
            answer = answers[(number * 7 + number // 3) % len(answers)]
            found.append(KnownFact(relation, prompt, subject, answer, tuple(others)))
    return found


@pytest.fixture(scope="module")
def trained() -> LanguageModel:
    """Trained until it knows its facts by heart, in every wording."""
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=256, num_hidden_layers=DEPTH, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=POSITIONS, tie_word_embeddings=True, bos_token_id=0,
        eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    rows = [
        tiny_tokenizer()(f"{fill(wording, fact.subject)} {fact.answer}.")["input_ids"]
        for fact in facts()
        for wording in (fact.prompt, *fact.paraphrases)
    ]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    labels = ids.masked_fill(ids == 0, -100)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = LlamaForCausalLM(config)
        for block in model.model.layers[:MUTE]:
            block.self_attn.o_proj.weight.data.zero_()
            block.self_attn.o_proj.weight.requires_grad_(requires_grad=False)
        optimiser = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.0)
        for step in range(STEPS):
            for group in optimiser.param_groups:
                group["lr"] = 5e-3 * min(1, (step + 1) / 20, 2 * (STEPS - step) / STEPS)
            chosen = torch.randperm(len(ids))[:72]
            loss = model(input_ids=ids[chosen], labels=labels[chosen]).loss
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
    model.eval().requires_grad_(requires_grad=False)
    return LanguageModel(model, tiny_tokenizer(), architecture_of(model), "trained")


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
    by_hand = _Search(trained, facts(), text, tmp_path, RECOMMENDED | OVERRIDES, silent)
    by_hand._tops = list(range(DEPTH - 1))
    for top in range(by_hand._tops[-1]):
        for power in range(2, 12):
            by_hand._try(top, 10 ** (power / 2))
    optimum = by_hand._best
    assert optimum.score > 0.6, "a sweep that finds nothing proves nothing"
    assert found.best.score > optimum.score - 0.02
    assert len(found.trials) < len(by_hand._trials)


def test_the_settings_are_the_best_trials(found: Calibration) -> None:
    assert found.settings.layers == found.best.layers
    assert found.settings.covariance_weight == found.best.covariance_weight
    assert found.settings.clamp == OVERRIDES["clamp"]
    assert all(0 <= trial.score <= 1 for trial in found.trials)
    assert len({(trial.layers, trial.covariance_weight) for trial in found.trials}) == len(found.trials)


def test_edited_facts_are_given_another_answer_and_leave_their_neighbours_alone(trained: LanguageModel) -> None:
    task = choose_task(trained, facts(), 0, silent)
    assert task == choose_task(trained, facts()[::-1], 0, silent), "the order of the facts must not matter"
    answers = {relation: {fact.answer for fact in facts() if fact.relation == relation} for relation in WORDINGS}
    for fact, new in task.edits:
        assert new != fact.answer
        assert new in answers[fact.relation]
    assert not {fact.subject for fact, _ in task.edits} & {fact.subject for fact in task.neighbours}


def test_too_few_known_facts_are_an_error_that_says_how_many(
    trained: LanguageModel, text: TextSource, tmp_path: Path
) -> None:
    wrong = [KnownFact("city", fact.prompt, fact.subject, "river", fact.paraphrases) for fact in facts()]
    with pytest.raises(SettingsInvalid, match=r"answers 0 of 48 facts.* at least 12"):
        calibrate(trained, wrong[::2] + wrong[1::2], text, tmp_path, OVERRIDES)


def test_an_interruption_leaves_the_weights_alone(trained: LanguageModel, text: TextSource, tmp_path: Path) -> None:
    before = {name: tensor.clone() for name, tensor in trained.model.state_dict().items()}

    class Stop(Exception):
        pass

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "calibration" and done == 3:
            raise Stop

    with pytest.raises(Stop):
        calibrate(trained, facts(), text, tmp_path, OVERRIDES, stop)
    for name, tensor in trained.model.state_dict().items():
        assert torch.equal(tensor, before[name])
