"""The gate: the rule that turns measurements into promote, reject or hold. Pure: no model, no database.

What is judged how, and why, is in docs/architecture.md ("The gate's statistics"). In short: live edits are all asked,
so shares of them are exact; other facts, wordings and texts are samples, and a bound has to keep its threshold.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from daemon.errors import MeasurementInvalid
from daemon.intervals import Interval, enough_for, least_for_margin, paired_difference, ratio, wilson

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from daemon.config import GateSection

Slot = tuple[str, str]
"""Q-id and P-id: the fact that probes are about, and the sampling unit."""

SAMPLED_FLOORS = ("paraphrase", "question", "reversal")
LOCALITY = ("neighbourhood", "same_subject", "control", "task")
NEEDS_EDITS = ("neighbourhood",)
OPTIONAL = ("same_subject", "task")
"""Of these a state may have few probes or none, and nothing can be done about it: only a proven loss counts."""
NAMED = 5
"""Facts that a reason names before it counts the rest."""


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
    """One model on one probe set.

    Attributes:
        shares: by kind and fact, the share of the fact's probes that are passed, 0 to 1.
        tokens: predicted in each window of ordinary text.
        losses: negative log-likelihood of each window, in nats.
        divergences: KL divergence from the base in each window, in nats.
        entropies: of n-grams in each generated text, in bits.
        repetitions: share of each generated text that repeats itself, 0 to 1.
    """

    shares: Mapping[str, Mapping[Slot, float]]
    tokens: Sequence[int]
    losses: Sequence[float]
    divergences: Sequence[float]
    entropies: Sequence[float]
    repetitions: Sequence[float]

    @property
    def finite(self) -> bool:
        """Whether the model reads and writes at all."""
        return all(map(math.isfinite, (*self.losses, *self.divergences, *self.entropies)))


@dataclass(frozen=True)
class Comparison:
    """One figure of the candidate against a floor or against another version.

    Attributes:
        candidate: its figure; None where there was nothing to measure.
        reference: the other version's figure.
        threshold: the floor, or the largest drop or rise.
        n: facts, windows or texts.
        loss: what the threshold limits: a drop of a share, a relative drop or rise, the figure; None for floors.
        low: lower bound of the loss, or of the share that has a floor.
        high: upper bound of the same.
        needed: about how many would decide, where this many did not.
    """

    measure: str
    against: str
    candidate: float | None
    reference: float | None
    threshold: float
    n: int
    verdict: Verdict
    detail: str
    loss: float | None = None
    low: float | None = None
    high: float | None = None
    needed: int | None = None


def compare(candidate: Measurement, references: Mapping[str, Measurement], settings: GateSection) -> list[Comparison]:
    """Every comparison the gate makes.

    Args:
        candidate: measured on the saved artifact.
        references: ``promoted`` and ``base`` on the same probes, so that small losses cannot creep.
        settings: the thresholds.

    Raises:
        MeasurementInvalid: a reference gives figures that are not numbers, so nothing can be compared with it.
    """
    for against, reference in references.items():
        if not reference.finite:
            raise MeasurementInvalid(
                f"the {against} version's reading is not a number: run `factsyncd verify`, and check gate.text"
            )
    comparisons = [*_ledger(candidate, references["promoted"], settings)]
    comparisons += [_floor(measure, candidate.shares.get(measure, {}), settings) for measure in SAMPLED_FLOORS]
    for against, reference in references.items():
        comparisons += [_drop(measure, against, candidate, reference, settings) for measure in LOCALITY]
        comparisons += _reading(against, candidate, reference, settings)
    return [*comparisons, *_divergence(candidate, settings)]


def least_facts(measure: str, settings: GateSection) -> int:
    """The fewest facts that can prove a measure's drop to be within its margin."""
    margin: float = getattr(settings, f"{measure}_max_drop")
    return max(least_for_margin(margin, settings.confidence), settings.minimum_probes)


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
    """One line on what decided: the comparisons that did not pass (failures first), or that all did."""
    notable = [
        c.detail for verdict in (Verdict.FAIL, Verdict.INCONCLUSIVE) for c in comparisons if c.verdict is verdict
    ]
    return "; ".join(notable) if notable else f"all {len(comparisons)} comparisons passed"


def _ledger(candidate: Measurement, promoted: Measurement, settings: GateSection) -> list[Comparison]:
    """Shares of live edits whose own prompt is answered. All of them are asked, so the shares are exact."""
    new, kept = candidate.shares.get("efficacy", {}), candidate.shares.get("retention", {})
    before = promoted.shares.get("retention", {})
    lost = [slot for slot, share in kept.items() if share < before[slot]]
    return [
        _exact("efficacy", {**new, **kept}, settings.efficacy_min, "live edits"),
        _exact("new_edits", new, settings.efficacy_min, "new edits"),
        _retention(kept, before, lost, settings.retention_max_drop),
    ]


def _exact(measure: str, shares: Mapping[Slot, float], floor: float, what: str) -> Comparison:
    n = len(shares)
    if n == 0:
        return Comparison(measure, "floor", None, None, floor, 0, Verdict.PASS, f"{measure}: no {what} to probe")
    share = _mean(shares.values())
    verdict = Verdict.PASS if share >= floor else Verdict.FAIL
    relation = "at least" if verdict is Verdict.PASS else "below"
    detail = f"{measure} {share:.1%} of {n} {what} is {relation} {floor:.1%}"
    missed = [slot for slot, passed in shares.items() if passed < 1]
    if missed:
        detail += f" (not answered: {_names(missed)})"
    return Comparison(measure, "floor", share, None, floor, n, verdict, detail)


def _retention(
    kept: Mapping[Slot, float], before: Mapping[Slot, float], lost: Sequence[Slot], limit: float
) -> Comparison:
    if not kept:
        detail = "retention: no edit of a former version is live"
        return Comparison("retention", "promoted", None, None, limit, 0, Verdict.PASS, detail)
    now, then = _mean(kept.values()), _mean(before[slot] for slot in kept)
    verdict = Verdict.PASS if then - now <= limit else Verdict.FAIL
    detail = f"retention {now:.1%} of {len(kept)} former edits against {then:.1%} (promoted), allowed drop {limit:.1%}"
    if lost:
        detail += f" (lost: {_names(lost)})"
    return Comparison("retention", "promoted", now, then, limit, len(kept), verdict, detail, then - now)


def _floor(measure: str, shares: Mapping[Slot, float], settings: GateSection) -> Comparison:
    """Facts in wordings that stand for others: a sample, so Wilson's bounds must clear the floor."""
    floor: float = getattr(settings, f"{measure}_min")
    n = len(shares)
    if n == 0:
        return Comparison(measure, "floor", None, None, floor, 0, Verdict.PASS, f"{measure}: no fact to probe")
    share = _mean(shares.values())
    bounds = wilson(share, n, settings.confidence)
    said = f"{measure} {share:.1%} of {n} facts ({_span(bounds)}), floor {floor:.1%}"
    needed = None
    if bounds.high < floor:
        verdict = Verdict.FAIL
    elif bounds.low >= floor:
        verdict = Verdict.PASS
    elif n < settings.minimum_probes:
        verdict = Verdict.PASS
        said += f": fewer than {settings.minimum_probes} facts, so only a proven failure would count"
    else:
        verdict = Verdict.INCONCLUSIVE
        needed = enough_for(n, share, bounds.low, floor)
        said += _undecided(needed, "facts")
    return Comparison(measure, "floor", share, None, floor, n, verdict, said, None, bounds.low, bounds.high, needed)


def _drop(
    measure: str, against: str, candidate: Measurement, reference: Measurement, settings: GateSection
) -> Comparison:
    """Paired non-inferiority over facts."""
    margin: float = getattr(settings, f"{measure}_max_drop")
    now, before = candidate.shares.get(measure, {}), reference.shares.get(measure, {})
    n = len(now)
    if measure in NEEDS_EDITS and not (candidate.shares.get("efficacy") or candidate.shares.get("retention")):
        detail = f"{measure}: no live edit to have neighbours"
        return Comparison(measure, against, None, None, margin, n, Verdict.PASS, detail)
    if n == 0 and measure in OPTIONAL:
        return Comparison(measure, against, None, None, margin, 0, Verdict.PASS, f"{measure}: no fact to probe")
    least = least_facts(measure, settings)
    if n == 0:
        verdict, needed, why = _judge(0.0, Interval(-1.0, 1.0), margin, 0, least)
        return Comparison(measure, against, None, None, margin, 0, verdict, f"{measure}{why}", needed=needed)
    change = paired_difference([now[slot] - before[slot] for slot in now], settings.confidence)
    share, other = _mean(now.values()), _mean(before[slot] for slot in now)
    drop = Interval(-change.high, -change.low)
    verdict, needed, why = _judge(other - share, drop, margin, n, least, optional=measure in OPTIONAL)
    detail = f"{measure} {share:.1%} of {n} facts against {other:.1%} ({against}), drop {_span(drop)}"
    detail += f", allowed {margin:.1%}{why}"
    return Comparison(
        measure, against, share, other, margin, n, verdict, detail, other - share, drop.low, drop.high, needed
    )


def _reading(against: str, candidate: Measurement, reference: Measurement, settings: GateSection) -> list[Comparison]:
    """How the candidate reads ordinary text and writes its own, window by window and text by text."""
    if not candidate.finite:
        detail = "perplexity could not be measured: the candidate's reading is not a number"
        limit = settings.perplexity_max_rise
        return [Comparison("perplexity", against, None, None, limit, len(candidate.losses), Verdict.FAIL, detail)]
    confidence = settings.confidence
    log_rise = ratio(_less(candidate.losses, reference.losses), candidate.tokens, confidence)
    ones = [1.0] * len(candidate.repetitions)
    # A base that writes nothing has no fluency to lose.
    bits = reference.entropies if any(reference.entropies) else ones
    thinner = ratio(_less(reference.entropies, candidate.entropies), bits, confidence)
    repeats = ratio(_less(candidate.repetitions, reference.repetitions), ones, confidence)
    read, was_read = _perplexity(candidate), _perplexity(reference)
    fluent, was_fluent = _mean(candidate.entropies), _mean(reference.entropies)
    repeated, was_repeated = _mean(candidate.repetitions), _mean(reference.repetitions)
    figures = [
        ("perplexity", read, was_read, read / was_read - 1, Interval(_expm1(log_rise.low), _expm1(log_rise.high)),
         settings.perplexity_max_rise, len(candidate.losses), f"{read:.2f} against {was_read:.2f}"),
        ("fluency", fluent, was_fluent, 1 - fluent / was_fluent if was_fluent else 0.0, thinner,
         settings.fluency_max_drop, len(candidate.entropies), f"{fluent:.2f} bits against {was_fluent:.2f}"),
        ("repetition", repeated, was_repeated, repeated - was_repeated, repeats,
         settings.repetition_max_rise, len(candidate.repetitions), f"{repeated:.1%} against {was_repeated:.1%}"),
    ]  # fmt: skip
    return [
        _limited(measure, against, (now, before), (loss, bounds), limit, n, said, settings)
        for measure, now, before, loss, bounds, limit, n, said in figures
    ]


def _divergence(candidate: Measurement, settings: GateSection) -> list[Comparison]:
    """How far the candidate's next words on ordinary text are from the base's, per token."""
    if not candidate.finite:
        return []  # said of the perplexity already
    bounds = ratio(candidate.divergences, candidate.tokens, settings.confidence)
    mean = math.fsum(candidate.divergences) / max(1, sum(candidate.tokens))
    limit, n = settings.divergence_max, len(candidate.divergences)
    return [_limited("divergence", "limit", (mean, None), (mean, bounds), limit, n, f"{mean:.4f} nats", settings)]


def _limited(
    measure: str, against: str, figures: tuple[float, float | None], loss: tuple[float, Interval], limit: float,
    n: int, said: str, settings: GateSection,
) -> Comparison:  # fmt: skip
    """A loss, with its bounds, that has to stay below a limit."""
    point, bounds = loss
    verdict, needed, why = _judge(point, bounds, limit, n, max(2, settings.minimum_probes), what="texts")
    shown = f"{bounds.low:.4f} to {bounds.high:.4f}, allowed {limit:g}"
    if measure != "divergence":
        shown = f"worse by {_span(bounds)}, allowed {limit:.1%}"
    detail = f"{measure} {said} ({against}), {shown}{why}"
    # An infinite bound cannot be stored everywhere, and says no more than none.
    low, high = (bound if math.isfinite(bound) else None for bound in (bounds.low, bounds.high))
    return Comparison(measure, against, figures[0], figures[1], limit, n, verdict, detail, point, low, high, needed)


def _judge(
    loss: float, bounds: Interval, limit: float, n: int, least: int, *, optional: bool = False, what: str = "facts"
) -> tuple[Verdict, int | None, str]:
    """Proven above the limit, proven within it, or neither; how many would decide; and that in words."""
    if n and bounds.low > limit:
        return Verdict.FAIL, None, ""
    if n < least:
        why = f": {n} {what} can never prove that, {least} are needed"
        return (Verdict.PASS, least, f"{why}; only a proven loss counts") if optional else (
            Verdict.INCONCLUSIVE, least, why
        )  # fmt: skip
    if bounds.high <= limit:
        return Verdict.PASS, None, ""
    needed = enough_for(n, loss, bounds.high, limit)
    return Verdict.INCONCLUSIVE, needed, _undecided(needed, what)


def _undecided(needed: int | None, what: str) -> str:
    if needed is None:
        return ": not decided, and more probes would rather show a loss"
    return f": not decided, about {needed} {what} would"


def _names(slots: Sequence[Slot]) -> str:
    """The first few facts, and how many more."""
    named = ", ".join(f"{qid} {pid}" for qid, pid in slots[:NAMED])
    return named if len(slots) <= NAMED else f"{named} and {len(slots) - NAMED} more"


def _span(bounds: Interval) -> str:
    return f"{bounds.low:+.1%} to {bounds.high:+.1%}"


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return math.fsum(numbers) / len(numbers) if numbers else 0.0


def _less(these: Sequence[float], those: Sequence[float]) -> list[float]:
    return [this - that for this, that in zip(these, those, strict=True)]


def _perplexity(measured: Measurement) -> float:
    return _exp(math.fsum(measured.losses) / max(1, sum(measured.tokens)))


def _exp(exponent: float) -> float:
    """``exp`` that ends at infinity instead of in an error."""
    return math.exp(exponent) if exponent < 700 else math.inf


def _expm1(exponent: float) -> float:
    return math.expm1(exponent) if exponent < 700 else math.inf
