"""Calibration: which layers to edit and how strongly, found from facts that a model knows.

Each trial edits some of them counterfactually (the answer of another fact of the relation) and looks at four shares:

- efficacy: edited prompts that greedy decoding answers with the new answer;
- paraphrase: other wordings of them in which the new answer is likelier than the old one;
- neighbourhood: facts left alone that are still answered as before;
- reading: ``(perplexity before / after) ** READING`` on ordinary text, so +3 % costs about a tenth.

The score is their harmonic mean. Value vectors depend on the last edited layer only, and the strength on nothing but
the solve, so every last layer is optimised for once and its strengths are tried by inserting alone.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from statistics import harmonic_mean
from typing import TYPE_CHECKING

import torch

from editor.errors import SettingsInvalid
from editor.insertion import Batch, Insertion
from editor.preparation import prepare
from editor.probing import scores
from editor.progress import Progress, silent
from editor.reading import perplexity
from editor.requests import EditRequest, fill
from editor.settings import MemitSettings
from editor.values import ValueOptimiser

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from editor.language_model import LanguageModel
    from editor.ordinary_text import TextSource

RECOMMENDED: dict[str, object] = {
    "steps": 28, "turns": 2, "learning_rate": 1.5, "clamp": 0.65, "loss_floor": 0.1, "shrinkage": 0.05, "passes": 4,
    "suffix_weight": 0.7, "protect_weight": 0.3, "contexts": 3, "covariance_tokens": 12000,
}  # fmt: skip
"""What does not depend on the model as far as we know (docs/benchmarks.md); layers and strength do."""

LAST_LAYERS = (0.15, 0.25, 0.35, 0.45, 0.55)
"""Where the last edited layer is tried, as shares of the depth; then between the best one and its neighbours."""
WINDOW = 5
"""Edited layers: fewer where there are not as many below."""
WEIGHTS = (10.0, 100.0, 1_000.0, 10_000.0)
"""Strengths tried at every last layer; around the best one then finer, by factors of :data:`FINER`."""
FINER = tuple(10 ** (power / 4) for power in (-3, -2, -1, 1, 2, 3))
READING = 3.0
EDITED, NEIGHBOURS = 24, 48
"""At most so many facts are edited, and left alone."""
FEWEST = 12
"""Known facts without which shares say nothing."""


@dataclass(frozen=True, order=True)
class KnownFact:
    """A fact that a model may know: ``prompt`` and ``paraphrases`` have one ``{}`` for the subject each."""

    relation: str
    prompt: str
    subject: str
    answer: str
    paraphrases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Trial:
    """What some layers and a strength came to; shares are of 1."""

    layers: tuple[int, ...]
    covariance_weight: float
    efficacy: float
    paraphrase: float
    neighbourhood: float
    reading: float

    @property
    def score(self) -> float:
        """Harmonic mean of the shares."""
        return harmonic_mean([self.efficacy, self.paraphrase, self.neighbourhood, self.reading])


@dataclass(frozen=True)
class Calibration:
    """The settings of the best trial, and all trials in the order they were made."""

    settings: MemitSettings
    trials: tuple[Trial, ...]

    @property
    def best(self) -> Trial:
        """The trial with the highest score; of equals the first."""
        return max(self.trials, key=lambda trial: trial.score)


@dataclass(frozen=True)
class _Task:
    """The facts of all trials."""

    edits: tuple[tuple[KnownFact, str], ...]  # with the new answer
    neighbours: tuple[KnownFact, ...]

    @property
    def requests(self) -> list[EditRequest]:
        return [EditRequest(fact.prompt, fact.subject, new) for fact, new in self.edits]


def calibrate(
    language_model: LanguageModel,
    facts: Sequence[KnownFact],
    text: TextSource,
    directory: Path,
    settings: Mapping[str, object] | None = None,
    progress: Progress = silent,
) -> Calibration:
    """Find layers and strength for a model.

    Args:
        language_model: the model; its weights are the same afterwards, whatever happens.
        facts: some dozens, of which the model should know most.
        text: ordinary text for the covariance and perplexity.
        directory: where the preparation is kept.
        settings: MEMIT settings other than layers and covariance_weight; :data:`RECOMMENDED` where not given.
        progress: told the trials done; may raise to interrupt.

    Raises:
        SettingsInvalid: the model knows too few of the facts, or has too few layers.
        EditorError: the text is too short, or an optimisation failed.
    """
    search = _Search(language_model, facts, text, directory, RECOMMENDED | dict(settings or {}), progress)
    return search()


def choose_task(language_model: LanguageModel, facts: Sequence[KnownFact], seed: int, progress: Progress) -> _Task:
    """Facts to edit and facts to leave alone, from those that the model answers.

    Raises:
        SettingsInvalid: there are too few.
    """
    ordered = sorted(set(facts))
    answered = scores(language_model, [(fill(fact.prompt, fact.subject), fact.answer) for fact in ordered], progress)
    known = [fact for fact, score in zip(ordered, answered, strict=True) if score.greedy]
    random.Random(seed).shuffle(known)  # noqa: S311 - not for secrets
    answers: dict[str, list[str]] = {}
    for fact in known:
        answers.setdefault(fact.relation, []).append(fact.answer)
    edits: list[tuple[KnownFact, str]] = []
    neighbours: list[KnownFact] = []
    for number, fact in enumerate(known):
        others = [answer for answer in answers[fact.relation] if answer != fact.answer]
        # Every third fact is edited: the others show what is lost.
        if number % 3 == 0 and others and fact.paraphrases and len(edits) < EDITED:
            edits.append((fact, others[number % len(others)]))
        elif len(neighbours) < NEIGHBOURS:
            neighbours.append(fact)
    subjects = {fact.subject for fact, _ in edits}
    neighbours = [fact for fact in neighbours if fact.subject not in subjects]
    if len(edits) < FEWEST // 3 or len(neighbours) < FEWEST // 3 or len(known) < FEWEST:
        raise SettingsInvalid(
            f"the model answers {len(known)} of {len(ordered)} facts, {len(edits)} of them can be edited: calibration "
            f"needs at least {FEWEST}, several to a relation and with other wordings; give it more facts"
        )
    return _Task(tuple(edits), tuple(neighbours))


class _Search:
    """One calibration."""

    def __init__(
        self,
        language_model: LanguageModel,
        facts: Sequence[KnownFact],
        text: TextSource,
        directory: Path,
        settings: dict[str, object],
        progress: Progress,
    ) -> None:
        self._lm = language_model
        self._progress = progress
        self._shared = settings
        tops = sorted({_top(share, language_model.depth) for share in LAST_LAYERS})
        everything = self._settings(tuple(range(tops[-1] + 1)), 1.0)
        self._task = choose_task(language_model, facts, everything.seed, progress)
        self._tops = tops
        self._preparation = prepare(language_model, everything, text, directory, progress)
        self._trials: dict[tuple[int, float], Trial] = {}
        self._values: dict[int, Tensor] = {}
        self._base_perplexity = perplexity(language_model, self._preparation.held_out)
        # Coarse, finer in strength, between last layers, and finer there.
        self._expected = len(tops) * len(WEIGHTS) + 2 * len(FINER) + 2

    def __call__(self) -> Calibration:
        for top in self._tops:
            for weight in WEIGHTS:
                self._try(top, weight)
        self._refine()
        best = self._best
        for top in self._between(best):
            self._try(top, best.covariance_weight)
        if self._best is not best:
            self._refine()
        best = self._best
        self._progress("calibration", self._expected, self._expected)
        return Calibration(self._settings(best.layers, best.covariance_weight), tuple(self._trials.values()))

    @property
    def _best(self) -> Trial:
        return max(self._trials.values(), key=lambda trial: trial.score)

    def _refine(self) -> None:
        best = self._best
        for factor in FINER:
            self._try(best.layers[-1], float(f"{best.covariance_weight * factor:.2g}"))

    def _between(self, best: Trial) -> list[int]:
        """Last layers halfway between the best one and those tried beside it."""
        top = best.layers[-1]
        tried = sorted({trial.layers[-1] for trial in self._trials.values()})
        at = tried.index(top)
        halfway = {(top + other) // 2 for other in tried[max(at - 1, 0) : at + 2]}
        return sorted(halfway - set(tried))

    def _settings(self, layers: tuple[int, ...], weight: float) -> MemitSettings:
        settings = MemitSettings.model_validate(self._shared | {"layers": layers, "covariance_weight": weight})
        settings.check_fits(self._lm.model.config)
        return settings

    def _try(self, top: int, weight: float) -> None:
        if (top, weight) in self._trials:
            return
        layers = window(top)
        settings = self._settings(layers, weight)
        contexts = self._preparation.contexts
        if top not in self._values:
            optimise = ValueOptimiser(self._lm, settings, contexts)
            stage = f"value vectors, layers {layers[0]} to {top}"
            self._values[top] = optimise(self._task.requests, lambda step, steps: self._progress(stage, step, steps))
        insert = Insertion(self._lm, settings, contexts, self._preparation.covariance)
        updates, _ = insert([Batch(self._task.requests, self._values[top])])
        self._trials[top, weight] = self._measured(layers, weight, updates)
        self._progress("calibration", min(len(self._trials), self._expected - 1), self._expected)

    def _measured(self, layers: tuple[int, ...], weight: float, updates: Mapping[int, Tensor]) -> Trial:
        architecture = self._lm.architecture
        weights = {at: architecture.down_projection_of(self._lm.model, at).get_parameter("weight") for at in updates}
        saved = {at: tensor.detach().clone() for at, tensor in weights.items()}
        try:
            with torch.no_grad():
                for at, update in updates.items():
                    weights[at].add_(architecture.as_stored(update).to(weights[at]))
            return Trial(layers, weight, *self._shares())
        finally:
            with torch.no_grad():
                for at, tensor in saved.items():
                    weights[at].copy_(tensor)

    def _shares(self) -> tuple[float, float, float, float]:
        task = self._task
        edited = [(fill(fact.prompt, fact.subject), new) for fact, new in task.edits]
        left = [(fill(fact.prompt, fact.subject), fact.answer) for fact in task.neighbours]
        reworded = [
            (fill(wording, fact.subject), fact.answer, new) for fact, new in task.edits for wording in fact.paraphrases
        ]
        pairs = [(prompt, answer) for prompt, *answers in reworded for answer in answers]
        scored = scores(self._lm, [*edited, *left, *pairs])
        efficacy = [score.greedy for score in scored[: len(edited)]]
        neighbourhood = [score.greedy for score in scored[len(edited) : len(edited) + len(left)]]
        rest = scored[len(edited) + len(left) :]
        paraphrase = [
            new.mean_probability > old.mean_probability for old, new in zip(rest[::2], rest[1::2], strict=True)
        ]
        now = perplexity(self._lm, self._preparation.held_out)
        reading = min(1.0, self._base_perplexity / now) ** READING if math.isfinite(now) else 0.0
        shares = [sum(passed) / len(passed) for passed in (efficacy, paraphrase, neighbourhood)]
        return shares[0], shares[1], shares[2], reading


def window(top: int) -> tuple[int, ...]:
    """The edited layers that end with ``top``."""
    return tuple(range(max(0, top - WINDOW + 1), top + 1))


def _top(share: float, depth: int) -> int:
    return min(max(round(share * depth), 0), depth - 2)
