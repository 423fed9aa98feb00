"""Confidence bounds for shares, paired differences and paired means. Pure arithmetic.

Every bound is one-sided: below ``low``, and above ``high``, the true value lies with a probability of at most
``1 - confidence`` each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import brentq
from scipy.special import stdtrit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

TOLERANCE = 1e-12
NEAR = 1e-9
"""How close to its ends a bound is looked for."""


@dataclass(frozen=True)
class Interval:
    """A lower and an upper bound, each one-sided."""

    low: float
    high: float


def wilson(mean: float, n: int, confidence: float) -> Interval:
    """Wilson's score bounds of a share (Wilson 1927).

    A unit may pass in part (a fact in two wordings of three): the variance of what lies between 0 and 1 is at most
    that of a share with the same mean, so the bounds then err on the wide side.

    Args:
        mean: of the units, 0 to 1.
        n: number of units, at least 1.
        confidence: of each bound, above 0.5 and below 1.
    """
    squared = _quantile(confidence) ** 2
    centre = mean + squared / (2 * n)
    half = math.sqrt(squared * (mean * (1 - mean) / n + squared / (4 * n * n)))
    return Interval(max(0.0, (centre - half) / (1 + squared / n)), min(1.0, (centre + half) / (1 + squared / n)))


def paired_difference(differences: Sequence[float], confidence: float) -> Interval:
    """Score bounds of the mean of paired differences between two shares.

    Where each unit has one probe (differences -1, 0 and 1) this is Tango's score interval (Tango 1998, Statistics in
    Medicine 17), which counts discordant pairs as McNemar's test does and stays honest where there are none. Units
    with several probes differ by fractions; the variance under the hypothesis is then that of the likeliest
    distribution whose mean is the hypothetical one, with the units' own values and the worst value (-1 for the lower
    bound) as its support (Owen 2001, Empirical Likelihood, chapter 2). On -1, 0 and 1 the two are the same.

    Args:
        differences: one per unit, from -1 to 1; at least one.
        confidence: of each bound, above 0.5 and below 1.
    """
    values = np.asarray(differences, dtype=np.float64)
    return Interval(_lower(values, _quantile(confidence)), -_lower(-values, _quantile(confidence)))


def ratio(values: Sequence[float], weights: Sequence[float], confidence: float) -> Interval:
    """Bounds of ``sum(values) / sum(weights)`` over independent units, by Student's t.

    The variance is that of a ratio of two sums, linearised (Cochran 1977, Sampling Techniques, section 6.4). With equal
    weights it is the t interval of the mean.

    Args:
        values: one per unit.
        weights: positive, one per unit.
        confidence: of each bound, above 0.5 and below 1.
    """
    n = len(values)
    if n < 2:
        return Interval(-math.inf, math.inf)
    total = math.fsum(weights)
    mean = math.fsum(values) / total
    residuals = math.fsum((value - mean * weight) ** 2 for value, weight in zip(values, weights, strict=True))
    half = float(stdtrit(n - 1, confidence)) * math.sqrt(n / (n - 1) * residuals) / total
    return Interval(mean - half, mean + half)


def least_for_margin(margin: float, confidence: float) -> int:
    """The fewest units that can prove a drop smaller than a margin, should none of them differ.

    Without a discordant pair the lower bound of :func:`paired_difference` is ``-z^2 / (n + z^2)``.
    """
    squared = _quantile(confidence) ** 2
    return max(1, math.ceil(squared * (1 - margin) / margin - TOLERANCE))


def enough_for(n: int, estimate: float, bound: float, threshold: float) -> int | None:
    """About how many units would bring a bound to a threshold, if the estimate stays; None where no number would.

    The distance between estimate and bound shrinks with the square root of the number of units.
    """
    room = abs(estimate - threshold)
    if room < TOLERANCE or (estimate - threshold) * (estimate - bound) < 0:
        return None
    return math.ceil(n * ((estimate - bound) / room) ** 2)


def _quantile(confidence: float) -> float:
    """How many standard errors a one-sided bound is away."""
    return NormalDist().inv_cdf(confidence)


def _lower(values: NDArray[np.float64], z: float) -> float:
    """The smallest mean that the values do not reject from below."""
    mean, n = float(values.mean()), len(values)

    def excess(hypothesis: float) -> float:
        return mean - hypothesis - z * math.sqrt(_restricted_variance(values, hypothesis) / n)

    least, most = -1 + NEAR, mean - NEAR
    if least >= most or excess(least) <= 0:
        return -1.0
    return float(brentq(excess, least, most, xtol=TOLERANCE))


def _restricted_variance(values: NDArray[np.float64], mean: float) -> float:
    """Variance of the likeliest distribution on the values and -1, given a mean that is smaller than theirs.

    A value is weighted by ``1 / (n (1 + t (value - mean) / (1 + mean)))`` with a tilt t from 0 to 1. Where the largest
    tilt is not enough, what the weights lack to 1 is on -1, which no unit needs to have.
    """
    distance = (values - mean) / (1 + mean)
    worst_occurs = bool((distance <= -1).any())

    def pull(tilt: float) -> float:
        return float((distance / (1 + tilt * distance)).mean())

    if not worst_occurs and pull(1.0) >= 0:
        tilt = 1.0
    else:
        tilt = float(brentq(pull, 0.0, 1 - TOLERANCE if worst_occurs else 1.0, xtol=TOLERANCE))
    weights = 1 / (len(values) * (1 + tilt * distance))
    rest = max(0.0, 1.0 - float(weights.sum()))
    return max(0.0, float((weights * values**2).sum()) + rest - mean**2)
