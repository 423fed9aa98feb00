"""Measure: one version on a frozen probe set, as the gate takes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from daemon.gate import Measurement
from daemon.probes import STABLE, Answers, Kind, Probe
from editor import LanguageModel, ngram_entropy, repetition

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from daemon.gate import Slot
    from daemon.probe_sets import Chosen
    from daemon.respondent import Respondent

OF_THE_BASE = STABLE
OF_THE_PROMOTED = (*STABLE, Kind.RETENTION)
"""Only what may drop is compared; the edits' own probes have floors."""


@dataclass(frozen=True)
class Measured:
    """One version on a probe set: what the gate compares, and the answers behind it.

    Attributes:
        measurement: shares and figures.
        asked: positions of the probes that it was asked.
        answers: to those, in their order.
    """

    measurement: Measurement
    asked: tuple[int, ...]
    answers: Answers

    def passed(self) -> dict[int, bool]:
        """Whether each probe that was asked is passed, by its position in the set."""
        return dict(zip(self.asked, self.answers.passed, strict=True))


def measure(
    respondent: Respondent, chosen: Chosen, kinds: Collection[Kind], base_model: LanguageModel | None = None
) -> Measured:
    """Ask a version the probes of some kinds, let it read the ordinary text and write texts of its own.

    Args:
        respondent: the version.
        chosen: the probe set.
        kinds: that it is asked.
        base_model: to take the divergence from; 0 without.
    """
    asked = tuple(i for i, probe in enumerate(chosen.probes) if probe.kind in kinds)
    probes = [chosen.probes[i] for i in asked]
    answers = respondent.answer(probes)
    read = respondent.readings(chosen.text, base_model)
    texts = respondent.continuations(chosen.openings)
    measurement = Measurement(
        shares=shares(probes, answers.passed),
        tokens=[each.tokens for each in read],
        losses=[each.loss for each in read],
        divergences=[each.divergence for each in read],
        entropies=[ngram_entropy(text) for text in texts],
        repetitions=[repetition(text) for text in texts],
    )
    return Measured(measurement, asked, answers)


def shares(probes: Sequence[Probe], passed: Sequence[bool]) -> Mapping[str, Mapping[Slot, float]]:
    """Shares by kind and fact: the fact is the sampling unit, its probes of a kind count together as one."""
    by_fact: dict[str, dict[Slot, list[bool]]] = {}
    for probe, ok in zip(probes, passed, strict=True):
        by_fact.setdefault(probe.kind.value, {}).setdefault((probe.qid, probe.pid), []).append(ok)
    return {
        kind: {slot: sum(results) / len(results) for slot, results in facts.items()} for kind, facts in by_fact.items()
    }
