"""Calibration: which layers to edit and how strongly, found from facts that a model knows.

Last layers over the depth are tried with strengths far apart, then finer strengths around the best, then last layers
between it and its neighbours, then more and fewer layers below it (editor/trials.py says what a trial looks at).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from editor.errors import SettingsInvalid
from editor.preparation import prepare
from editor.progress import Progress, silent
from editor.trials import EDITED, KnownFact, Trial, Trials, checked_settings, choose_task
from editor.value_cache import ValueCache

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from editor.language_model import LanguageModel
    from editor.ordinary_text import TextSource
    from editor.settings import MemitSettings

RECOMMENDED: dict[str, object] = {
    "steps": 24, "turns": 2, "learning_rate": 1.5, "clamp": 0.65, "loss_floor": 0.1, "shrinkage": 0.05, "passes": 4,
    "suffix_weight": 0.7, "protect_weight": 0.3, "contexts": 3, "covariance_tokens": 12000,
}  # fmt: skip
"""What does not depend on the model as far as we know (docs/benchmarks.md); layers and strength do."""

LAST_LAYERS = (0.15, 0.25, 0.35, 0.45, 0.55)
"""Where the last edited layer is tried, as shares of the depth; then between the best one and its neighbours."""
WIDTH = 5
"""Edited layers at first: fewer where there are not as many below."""
WIDTHS = (1, 3, 8)
"""Numbers of edited layers that are then tried at the best last layer."""
WEIGHTS = (10.0, 100.0, 1_000.0, 10_000.0)
"""Strengths tried at every last layer."""
STEP = 10.0
"""Factor from the best strength to a next one, as long as the best is the weakest or strongest of its layers."""
WEAKEST, STRONGEST = 1e-2, 1e6
FINER = tuple(10 ** (power / 4) for power in (-3, -2, -1, 1, 2, 3))
"""Factors from the best strength to those tried around it."""
TOLERANCE = 0.01
"""Scores this close to the highest are as good: so few facts do not tell them apart."""


@dataclass(frozen=True)
class Calibration:
    """The settings of the trial that was chosen, and all trials in the order they were made."""

    settings: MemitSettings
    trials: tuple[Trial, ...]

    @property
    def chosen(self) -> Trial:
        """The trial that the settings are from."""
        return choice(self.trials)


def calibrate(
    language_model: LanguageModel,
    facts: Sequence[KnownFact],
    text: TextSource,
    directory: Path,
    settings: Mapping[str, object] | None = None,
    *,
    terminator: str = "",
    edited: int = EDITED,
    progress: Progress = silent,
) -> Calibration:
    """Find layers and strength for a model. The same model, facts and settings give the same answer on a machine.

    Args:
        language_model: the model; its weights are the same afterwards, whatever happens.
        facts: some dozens that the model knows; those it does not answer are left out.
        text: ordinary text for the covariance and perplexity.
        directory: where what a second run need not compute again is kept.
        settings: MEMIT settings other than layers and covariance_weight; :data:`RECOMMENDED` where not given.
        terminator: written after each answer.
        edited: most facts that a trial edits.
        progress: told the trials done; may raise to interrupt.

    Raises:
        SettingsInvalid: the model knows too few of the facts or has too few layers, a setting is out of range, or
            nothing that was tried writes facts.
        EditorError: the text is too short, or a fact cannot be written.
    """
    shared = RECOMMENDED | dict(settings or {})
    tops = last_layers(language_model.depth)
    everything = checked_settings(language_model, shared, tuple(range(tops[-1] + 1)), 1.0)
    if everything.strategy == "null_space":
        raise SettingsInvalid("strategy null_space has no covariance_weight to find: calibrate with strategy ledger")
    task = choose_task(language_model, facts, everything.seed, edited, progress)
    # One pass over the text for all layers.
    preparation = prepare(language_model, everything, text, directory, progress)
    values = ValueCache(directory / "values")
    tried = search(Trials(language_model, task, shared, preparation, values, terminator, progress), tops, progress)
    chosen = choice(tried)
    if chosen.score == 0:
        raise SettingsInvalid(
            f"none of {len(tried)} trials wrote the facts and left the others alone: try another learning_rate, clamp "
            "or steps"
        )
    found = checked_settings(language_model, shared, chosen.layers, chosen.covariance_weight)
    return Calibration(found, tuple(tried))


def choice(trials: Sequence[Trial]) -> Trial:
    """Of the trials as good as the best, the one after which ordinary text is read best; of equals the first.

    Some dozens of facts cost ordinary text little however weakly it resists, and many more will be written later.
    """
    highest = max(trial.score for trial in trials)
    return max((trial for trial in trials if trial.score >= highest - TOLERANCE), key=lambda trial: trial.reading)


def last_layers(depth: int) -> list[int]:
    """Last edited layers to try in a model of so many blocks.

    Raises:
        SettingsInvalid: there is none below the model's last.
    """
    if depth < 2:
        raise SettingsInvalid(f"a model of {depth} block cannot be edited: one at least must lie above the edited ones")
    return sorted({min(round(share * depth), depth - 2) for share in LAST_LAYERS})


def window(top: int, width: int = WIDTH) -> tuple[int, ...]:
    """The edited layers that end with ``top``, as many as there are up to ``width``."""
    return tuple(range(max(0, top - width + 1), top + 1))


def search(
    attempt: Callable[[tuple[int, ...], float], Trial], tops: Sequence[int], progress: Progress = silent
) -> list[Trial]:
    """All trials in the order they were made."""
    return _Search(attempt, progress)(tops)


class _Search:
    def __init__(self, attempt: Callable[[tuple[int, ...], float], Trial], progress: Progress) -> None:
        self._attempt = attempt
        self._progress = progress
        self._trials: dict[tuple[tuple[int, ...], float], Trial] = {}

    def __call__(self, tops: Sequence[int]) -> list[Trial]:
        # Coarse, finer in strength, between last layers, other widths, finer again: seldom more.
        self._expected = len(tops) * len(WEIGHTS) + 2 * len(FINER) + 2 + len(WIDTHS)
        self._all((window(top) for top in tops), WEIGHTS)
        self._further()
        self._finer()
        coarse = self._best
        self._all([window(top) for top in self._between(coarse.layers[-1])], [coarse.covariance_weight])
        best = self._best
        self._all([window(best.layers[-1], width) for width in WIDTHS], [best.covariance_weight])
        if self._best.layers != coarse.layers:
            self._finer()
        self._progress("calibration", self._expected, self._expected)
        return list(self._trials.values())

    @property
    def _best(self) -> Trial:
        return max(self._trials.values(), key=lambda trial: trial.score)

    def _all(self, windows: Iterable[tuple[int, ...]], weights: Sequence[float]) -> None:
        for layers in windows:
            for weight in weights:
                self._try(layers, weight)

    def _try(self, layers: tuple[int, ...], weight: float) -> None:
        if (layers, weight) in self._trials:
            return
        self._trials[layers, weight] = self._attempt(layers, weight)
        self._expected = max(self._expected, len(self._trials) + 1)
        self._progress("calibration", len(self._trials), self._expected)

    def _further(self) -> None:
        """Weaker and stronger ones, as long as the best is at an end."""
        while True:
            best = self._best
            weights = [weight for layers, weight in self._trials if layers == best.layers]
            ends = {min(weights): best.covariance_weight / STEP, max(weights): best.covariance_weight * STEP}
            following = ends.get(best.covariance_weight, 0.0)
            if best.score == 0 or not WEAKEST <= following <= STRONGEST:
                return
            self._try(best.layers, following)

    def _finer(self) -> None:
        best = self._best
        for factor in FINER:
            self._try(best.layers, float(f"{best.covariance_weight * factor:.2g}"))

    def _between(self, top: int) -> list[int]:
        """Last layers halfway between one and those tried beside it."""
        tried = sorted({layers[-1] for layers, _ in self._trials})
        at = tried.index(top)
        return sorted({(top + other) // 2 for other in tried[max(at - 1, 0) : at + 2]} - set(tried))
