"""The gate: the rule that turns measurements into promote, reject or hold. Pure: no model, no database."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from daemon.config import GateSection

FLOORS = ("efficacy", "paraphrase")
LOCALITY = ("neighbourhood", "control")


class Verdict(StrEnum):
    """Of one comparison."""

    PASS = "pass"  # noqa: S105 - no password
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"


class Decision(StrEnum):
    """Of all comparisons; the fourth outcome, ``error``, is an exception on the way here."""

    PROMOTE = "promote"
    REJECT = "reject"
    HOLD = "hold"


@dataclass(frozen=True)
class Measurement:
    """One model on one probe set: share passed of n per kind, and perplexity (n: tokens)."""

    shares: Mapping[str, float]
    counts: Mapping[str, int]
    perplexity: float
    perplexity_tokens: int


@dataclass(frozen=True)
class Comparison:
    """One figure of the candidate against a floor or against another version."""

    measure: str
    against: str
    candidate: float | None
    reference: float | None
    threshold: float
    n: int
    verdict: Verdict
    detail: str


def compare(candidate: Measurement, references: Mapping[str, Measurement], settings: GateSection) -> list[Comparison]:
    """Every comparison the gate makes.

    Args:
        candidate: measured on the saved artifact.
        references: ``promoted`` and ``base`` on the same probes, so that small losses cannot creep.
        settings: the thresholds.
    """
    comparisons = [_floor(measure, candidate, getattr(settings, f"{measure}_min")) for measure in FLOORS]
    for against, reference in references.items():
        comparisons += [_drop(measure, against, candidate, reference, settings) for measure in LOCALITY]
        comparisons.append(_rise(against, candidate, reference, settings.perplexity_max_rise))
    return comparisons


def capacity(load: float, unwritten: float, warning: float) -> Comparison:
    """How full the edited layers are. It never decides: whether edits hold is what the probes measure.

    Args:
        load: share of the layers' key dimensions that the ledger takes up.
        unwritten: share of the wanted changes that the weights do not make.
        warning: from which load on an operator should be told.
    """
    detail = f"capacity: the ledger takes up {load:.1%} of the edited layers, {unwritten:.1%} of it is not written"
    if load > warning:
        detail += f"; above {warning:.0%} edits begin to displace each other: edit more layers or a larger model"
    return Comparison("capacity", "warning", load, None, warning, 0, Verdict.PASS, detail)


def decide(comparisons: Sequence[Comparison]) -> Decision:
    """Any failure rejects; otherwise anything inconclusive holds; otherwise the candidate is promoted."""
    verdicts = {comparison.verdict for comparison in comparisons}
    if Verdict.FAIL in verdicts:
        return Decision.REJECT
    if Verdict.INCONCLUSIVE in verdicts or not verdicts:
        return Decision.HOLD
    return Decision.PROMOTE


def reasons(comparisons: Sequence[Comparison]) -> str:
    """One line on what decided: the comparisons that did not pass, or that all did."""
    notable = [c.detail for c in comparisons if c.verdict is not Verdict.PASS]
    return "; ".join(notable) if notable else f"all {len(comparisons)} comparisons passed"


def _floor(measure: str, candidate: Measurement, threshold: float) -> Comparison:
    n = candidate.counts.get(measure, 0)
    if n == 0:
        return Comparison(measure, "floor", None, None, threshold, 0, Verdict.PASS, f"{measure}: no live edit to probe")
    share = candidate.shares[measure]
    verdict = Verdict.PASS if share >= threshold else Verdict.FAIL
    relation = "at least" if verdict is Verdict.PASS else "below"
    detail = f"{measure} {share:.1%} of {n} is {relation} {threshold:.1%}"
    return Comparison(measure, "floor", share, None, threshold, n, verdict, detail)


def _drop(
    measure: str, against: str, candidate: Measurement, reference: Measurement, settings: GateSection
) -> Comparison:
    threshold: float = getattr(settings, f"{measure}_max_drop")
    n = candidate.counts.get(measure, 0)
    if measure == "neighbourhood" and not candidate.counts.get("efficacy"):
        detail = f"{measure}: no live edit to have neighbours"
        return Comparison(measure, against, None, None, threshold, n, Verdict.PASS, detail)
    if n < settings.minimum_probes:
        detail = f"{measure}: {n} probes, the gate needs {settings.minimum_probes} to decide"
        return Comparison(measure, against, None, None, threshold, n, Verdict.INCONCLUSIVE, detail)
    now, before = candidate.shares[measure], reference.shares[measure]
    verdict = Verdict.PASS if before - now <= threshold else Verdict.FAIL
    detail = f"{measure} {now:.1%} of {n} against {before:.1%} ({against}), allowed drop {threshold:.1%}"
    return Comparison(measure, against, now, before, threshold, n, verdict, detail)


def _rise(against: str, candidate: Measurement, reference: Measurement, threshold: float) -> Comparison:
    now, before = candidate.perplexity, reference.perplexity
    n = candidate.perplexity_tokens
    if math.isnan(now) or math.isnan(before):
        detail = "perplexity could not be measured: the text is empty or the model is broken"
        return Comparison("perplexity", against, None, None, threshold, n, Verdict.FAIL, detail)
    verdict = Verdict.PASS if now / before - 1 <= threshold else Verdict.FAIL
    detail = f"perplexity {now:.2f} against {before:.2f} ({against}), allowed rise {threshold:.1%}"
    return Comparison("perplexity", against, now, before, threshold, n, verdict, detail)
