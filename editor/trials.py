"""Trials: what some layers and a strength do to facts that a model knows.

Each trial edits some known facts counterfactually (the answer of another fact of the relation), looks at four shares,
and puts the weights back:

- efficacy: edited prompts that greedy decoding answers with the new answer;
- paraphrase: other wordings of them in which the new answer is likelier than the old one;
- neighbourhood: facts left alone that are still answered as before;
- reading: ``(perplexity before / after) ** READING`` on ordinary text, so +3 % costs about a tenth.

The score is their harmonic mean. Value vectors depend on the last edited layer only, so they are optimised once for
each last layer; what is below it and the strength are tried by inserting alone.
"""

from __future__ import annotations

import contextlib
import math
import random
from dataclasses import dataclass
from statistics import fmean, harmonic_mean
from typing import TYPE_CHECKING

import torch
from pydantic import ValidationError

from editor.errors import NumericalFailure, SettingsInvalid
from editor.insertion import Batch, Insertion
from editor.memit import Memit
from editor.probing import scores
from editor.progress import Progress, silent
from editor.reading import perplexity
from editor.requests import EditRequest, fill
from editor.settings import MemitSettings
from editor.solve import Factors

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor

    from editor.language_model import LanguageModel
    from editor.preparation import Preparation
    from editor.value_cache import ValueCache

READING = 3.0
EDITED = 24
"""Most facts that are edited, where the caller does not say."""
NEIGHBOURS = 48
"""Most facts that are left alone and looked at."""
WORDINGS = 3
"""Most paraphrases of a fact that are asked: the sampling unit is the fact, further wordings tell little more."""
FEWEST = 12
"""Known facts without which shares say nothing; a third of them is edited."""


@dataclass(frozen=True, order=True)
class KnownFact:
    """A fact that a model may know. Each wording has one ``{}`` for the subject.

    Attributes:
        relation: facts of one relation lend each other their answers.
        prompt: the wording that goes on with the answer, and that an edit is computed on.
        subject: what it is about.
        answer: without a leading space.
        paraphrases: held-out wordings; only a fact that has some can be edited.
        variants: further wordings that an edit is also computed on.

    Raises:
        RequestInvalid: a wording without a single ``{}``, or an empty subject or answer.
    """

    relation: str
    prompt: str
    subject: str
    answer: str
    paraphrases: tuple[str, ...] = ()
    variants: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        EditRequest(self.prompt, self.subject, self.answer, (*self.variants, *self.paraphrases))

    @property
    def asked(self) -> str:
        """The prompt about the subject."""
        return fill(self.prompt, self.subject)


@dataclass(frozen=True)
class Task:
    """The facts of a trial: some to edit, each with its new answer, and some to leave alone."""

    edits: tuple[tuple[KnownFact, str], ...]
    neighbours: tuple[KnownFact, ...]


@dataclass(frozen=True)
class Trial:
    """What some layers and a strength came to; shares are of 1, and all 0 where the facts could not be written."""

    layers: tuple[int, ...]
    covariance_weight: float
    efficacy: float = 0.0
    paraphrase: float = 0.0
    neighbourhood: float = 0.0
    reading: float = 0.0

    @property
    def score(self) -> float:
        """Harmonic mean of the shares."""
        return harmonic_mean([self.efficacy, self.paraphrase, self.neighbourhood, self.reading])


def choose_task(
    language_model: LanguageModel,
    facts: Sequence[KnownFact],
    seed: int = 0,
    edited: int = EDITED,
    progress: Progress = silent,
) -> Task:
    """Facts to edit and facts to leave alone, from those that the model answers; no subject is in both.

    At most a third of the known facts is edited, and relations take turns, so that none outweighs the others. The order
    in which the facts are given does not matter.

    Raises:
        SettingsInvalid: there are too few; says how many.
    """
    ordered = sorted(set(facts))
    answered = scores(language_model, [(fact.asked, fact.answer) for fact in ordered], progress)
    known = [fact for fact, score in zip(ordered, answered, strict=True) if score.greedy]
    random.Random(seed).shuffle(known)  # noqa: S311 - not for secrets
    known = _in_turn(known)
    edits = _edits(known, min(edited, len(known) // 3))
    subjects = {fact.subject for fact, _ in edits}
    neighbours = [fact for fact in known if fact.subject not in subjects][:NEIGHBOURS]
    if len(known) < FEWEST or min(len(edits), len(neighbours)) < FEWEST // 3:
        raise SettingsInvalid(
            f"the model answers {len(known)} of {len(ordered)} facts, and {len(edits)} of them can be edited beside "
            f"{len(neighbours)} left alone: calibration needs {FEWEST} that it answers and {FEWEST // 3} of each kind; "
            "give it more facts, with paraphrases, and with different answers in a relation"
        )
    return Task(tuple(edits), tuple(neighbours))


def _in_turn(facts: Sequence[KnownFact]) -> list[KnownFact]:
    """The first fact of every relation, then the second of every one, and so on."""
    seen: dict[str, int] = {}
    turns = []
    for fact in facts:
        seen[fact.relation] = turn = seen.get(fact.relation, 0) + 1
        turns.append(turn)
    return [fact for _, fact in sorted(zip(turns, facts, strict=True), key=lambda pair: pair[0])]


def _edits(known: Sequence[KnownFact], wanted: int) -> list[tuple[KnownFact, str]]:
    """The first facts that can be edited, each with the answer of another fact of its relation."""
    answers: dict[str, list[str]] = {}
    for fact in known:
        answers.setdefault(fact.relation, []).append(fact.answer)
    edits: list[tuple[KnownFact, str]] = []
    for number, fact in enumerate(known):
        others = [answer for answer in answers[fact.relation] if answer != fact.answer]
        if others and fact.paraphrases and len(edits) < wanted:
            edits.append((fact, others[number % len(others)]))
    return edits


class Trials:
    """Tries layers and strengths on one task.

    Args:
        language_model: the model; its weights are the same after every trial, whatever happens.
        task: the facts.
        settings: MEMIT settings other than layers and covariance_weight.
        preparation: contexts, held-out text, and the covariance of every layer that is tried.
        values: where value vectors are kept.
        terminator: written after each new answer.
        progress: may raise to interrupt.
    """

    def __init__(
        self,
        language_model: LanguageModel,
        task: Task,
        settings: Mapping[str, object],
        preparation: Preparation,
        values: ValueCache,
        terminator: str = "",
        progress: Progress = silent,
    ) -> None:
        self._lm = language_model
        self._task = task
        self._settings = dict(settings)
        self._preparation = preparation
        self._cache = values
        self._progress = progress
        self._requests = [
            EditRequest(fact.prompt, fact.subject, new + terminator, fact.variants) for fact, new in task.edits
        ]
        self._values: dict[int, Tensor] = {}
        self._failed: set[int] = set()
        self._factors: tuple[tuple[int, ...], Factors] = ((), Factors())
        self._perplexity = perplexity(language_model, preparation.held_out)

    def __call__(self, layers: tuple[int, ...], covariance_weight: float) -> Trial:
        """Edit, measure and put the weights back.

        Raises:
            SettingsInvalid: the settings or layers do not fit the model.
            EditorError: a request cannot be written, or the progress callback interrupted.
        """
        settings = checked_settings(self._lm, self._settings, layers, covariance_weight)
        try:
            updates = self._updates(settings)
        except NumericalFailure:
            return Trial(layers, covariance_weight)
        with self._edited(updates):
            return Trial(layers, covariance_weight, *self._shares())

    def _updates(self, settings: MemitSettings) -> dict[int, Tensor]:
        """Updates ``[d, d_ff]`` by layer.

        Raises:
            NumericalFailure: the optimisation or the solve failed.
        """
        values = self._vectors(settings)
        if self._factors[0] != settings.layers:
            # Strengths share a layer's factor; those of all layers ever tried would fill the memory.
            self._factors = (settings.layers, Factors())
        contexts, covariance = self._preparation.contexts, self._preparation.covariance
        insert = Insertion(self._lm, settings, contexts, covariance, self._factors[1])
        updates, _ = insert([Batch(self._requests, values)])
        return updates

    def _vectors(self, settings: MemitSettings) -> Tensor:
        """Value vectors ``[facts, d]`` at the last layer, optimised once."""
        top = settings.layers[-1]
        if top in self._failed:
            raise NumericalFailure(f"value vectors at layer {top} are not finite: lower learning_rate")
        if top not in self._values:

            def report(stage: str, done: int, total: int) -> None:
                self._progress(f"{stage}, layer {top}", done, total)

            memit = Memit(self._lm, settings, self._preparation, self._cache)
            try:
                self._values[top] = memit.values(self._requests, report)
            except NumericalFailure:
                self._failed.add(top)
                raise
        return self._values[top]

    @contextlib.contextmanager
    def _edited(self, updates: Mapping[int, Tensor]) -> Iterator[None]:
        """The model with updates added, for the time of a block."""
        architecture = self._lm.architecture
        weights = {at: architecture.down_projection_of(self._lm.model, at).get_parameter("weight") for at in updates}
        saved = {at: weight.detach().clone() for at, weight in weights.items()}
        try:
            with torch.no_grad():
                for at, update in updates.items():
                    # Rounded once, as a version is.
                    added = architecture.as_stored(update).to(weights[at].device)
                    weights[at].copy_((weights[at].float() + added).to(weights[at].dtype))
            yield
        finally:
            with torch.no_grad():
                for at, weight in saved.items():
                    weights[at].copy_(weight)

    def _shares(self) -> tuple[float, float, float, float]:
        """Efficacy, paraphrase, neighbourhood and reading of the model as it is."""
        edits, neighbours = self._task.edits, self._task.neighbours
        edited = [(fact.asked, new) for fact, new in edits]
        left = [(fact.asked, fact.answer) for fact in neighbours]
        reworded = [
            (fill(wording, fact.subject), answer)
            for fact, new in edits
            for wording in fact.paraphrases[:WORDINGS]
            for answer in (fact.answer, new)
        ]
        scored = scores(self._lm, [*edited, *left, *reworded])
        efficacy = [score.greedy for score in scored[: len(edited)]]
        neighbourhood = [score.greedy for score in scored[len(edited) : -len(reworded)]]
        likely = [score.mean_probability for score in scored[-len(reworded) :]]
        paraphrase = [new > old for old, new in zip(likely[::2], likely[1::2], strict=True)]
        return fmean(efficacy), fmean(paraphrase), fmean(neighbourhood), self._reading()

    def _reading(self) -> float:
        try:
            now = perplexity(self._lm, self._preparation.held_out)
        except OverflowError:
            return 0.0
        return min(1.0, self._perplexity / now) ** READING if math.isfinite(now) else 0.0


def checked_settings(
    language_model: LanguageModel, settings: Mapping[str, object], layers: tuple[int, ...], covariance_weight: float
) -> MemitSettings:
    """MEMIT settings with layers and a strength.

    Raises:
        SettingsInvalid: a value is out of range, or the model has no such layers.
    """
    given = {**settings, "layers": layers, "covariance_weight": covariance_weight}
    try:
        checked = MemitSettings.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        raise SettingsInvalid(f"MEMIT setting {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    checked.check_fits(language_model.model.config)
    return checked
