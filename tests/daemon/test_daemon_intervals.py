"""The statistics, against closed forms, against scipy, by their properties, and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from daemon.intervals import enough_for, least_for_margin, paired_difference, ratio, wilson

CONFIDENCES = st.sampled_from([0.8, 0.9, 0.95, 0.99])
UNITS = st.lists(st.sampled_from([-1.0, -0.5, -1 / 3, 0.0, 0.0, 0.0, 1 / 3, 0.5, 1.0]), min_size=1, max_size=60)


def tango(gained: int, lost: int, n: int, confidence: float) -> float:
    """The lower bound as published, with its closed form of the restricted probability."""
    z = stats.norm.ppf(confidence)

    def statistic(d: float) -> float:
        b = -gained - lost + (2 * n - gained + lost) * d
        q = (math.sqrt(max(b * b + 8 * n * lost * d * (1 - d), 0)) - b) / (4 * n)
        return (gained - lost - n * d) / math.sqrt(n * (2 * q + d * (1 - d)))

    low, high = -1 + 1e-9, (gained - lost) / n - 1e-12
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if statistic(middle) > z else (low, middle)
    return low


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 300), CONFIDENCES)
def test_with_one_probe_a_fact_it_is_tangos_interval(gained: int, lost: int, same: int, confidence: float) -> None:
    n = gained + lost + same
    if n == 0 or gained == n or lost == n:
        return
    bounds = paired_difference([1] * gained + [-1] * lost + [0] * same, confidence)
    assert bounds.low == pytest.approx(tango(gained, lost, n, confidence), abs=1e-6)
    assert bounds.high == pytest.approx(-tango(lost, gained, n, confidence), abs=1e-6)


@given(st.integers(0, 200), st.integers(1, 200), CONFIDENCES)
def test_wilson_is_that_of_scipy(passed: int, n: int, confidence: float) -> None:
    passed = min(passed, n)
    both_sides = 2 * confidence - 1
    expected = stats.binomtest(passed, n).proportion_ci(both_sides, method="wilson")
    bounds = wilson(passed / n, n, confidence)
    assert (bounds.low, bounds.high) == pytest.approx((expected.low, expected.high), abs=1e-9)


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=40), CONFIDENCES)
def test_with_equal_weights_a_ratio_is_students_interval_of_the_mean(values: list[float], confidence: float) -> None:
    bounds = ratio(values, [1.0] * len(values), confidence)
    mean, error = float(np.mean(values)), float(np.std(values, ddof=1)) / math.sqrt(len(values))
    t = stats.t.ppf(confidence, len(values) - 1)
    assert (bounds.low, bounds.high) == pytest.approx((mean - t * error, mean + t * error), abs=1e-6)


def test_one_unit_bounds_no_ratio() -> None:
    bounds = ratio([1.0], [2.0], 0.95)
    assert (bounds.low, bounds.high) == (-math.inf, math.inf)


@given(UNITS, CONFIDENCES)
def test_bounds_hold_the_estimate_and_mirror(units: list[float], confidence: float) -> None:
    bounds = paired_difference(units, confidence)
    mirrored = paired_difference([-unit for unit in units], confidence)
    assert -1 <= bounds.low <= float(np.mean(units)) + 1e-9
    assert float(np.mean(units)) - 1e-9 <= bounds.high <= 1
    assert (mirrored.low, mirrored.high) == pytest.approx((-bounds.high, -bounds.low), abs=1e-9)


@given(UNITS, st.integers(0, 59), CONFIDENCES)
def test_a_loss_more_never_raises_a_bound(units: list[float], at: int, confidence: float) -> None:
    worse = [*units]
    worse[at % len(units)] = -1.0
    before, after = paired_difference(units, confidence), paired_difference(worse, confidence)
    assert after.low <= before.low + 1e-9
    assert after.high <= before.high + 1e-9


@given(st.lists(st.floats(0, 1), min_size=1, max_size=60), CONFIDENCES)
def test_more_confidence_and_fewer_units_are_wider(units: list[float], confidence: float) -> None:
    mean, n = float(np.mean(units)), len(units)
    narrow = wilson(mean, 2 * n, confidence)
    for wide in (wilson(mean, n, confidence), wilson(mean, 2 * n, (1 + confidence) / 2)):
        assert wide.low <= narrow.low + 1e-12
        assert wide.high >= narrow.high - 1e-12


@given(UNITS, CONFIDENCES)
def test_twice_the_same_facts_bind_no_less(units: list[float], confidence: float) -> None:
    once, twice = paired_difference(units, confidence), paired_difference([*units, *units], confidence)
    assert twice.low >= once.low - 1e-9
    assert twice.high <= once.high + 1e-9


@given(st.floats(0.001, 1.0), CONFIDENCES)
def test_the_least_number_is_the_first_that_can_prove_a_margin(margin: float, confidence: float) -> None:
    least = least_for_margin(margin, confidence)
    if least > 3000:
        return
    assert paired_difference([0.0] * least, confidence).low >= -margin - 1e-9
    if least > 1:
        assert paired_difference([0.0] * (least - 1), confidence).low < -margin


def test_enough_is_about_enough() -> None:
    units = [1.0] * 3 + [-1.0] * 5 + [0.0] * 92
    bounds = paired_difference(units, 0.95)
    needed = enough_for(100, -0.02, bounds.low, -0.05)
    assert needed is not None
    assert 100 < needed < 400
    assert paired_difference(units * (needed // 100 + 1), 0.95).low >= -0.05
    assert enough_for(100, -0.06, -0.1, -0.05) is None  # more of the same would not do it
    assert enough_for(100, -0.05, -0.1, -0.05) is None


# By simulation, with a fixed seed. The bounds are approximate: a share of misses near 5 % is what to expect, and the
# score intervals stay near it also where discordant pairs are rare.


@pytest.mark.parametrize(
    ("gain", "loss", "n"), [(0.02, 0.05, 200), (0.01, 0.06, 100), (0.05, 0.1, 60), (0.0, 0.05, 60)]
)
def test_a_difference_lies_below_its_lower_bound_in_about_one_of_twenty(gain: float, loss: float, n: int) -> None:
    chance = np.random.default_rng(5)
    drawn = chance.multinomial(n, [gain, loss, 1 - gain - loss], size=1500)
    kinds, times = np.unique(drawn, axis=0, return_counts=True)
    missed = sum(
        count
        for (more, less, same), count in zip(kinds.tolist(), times.tolist(), strict=True)
        if paired_difference([1] * more + [-1] * less + [0] * same, 0.95).low > gain - loss
    )
    assert missed / 1500 < 0.075


def test_facts_with_three_probes_are_bound_honestly_and_more_tightly_than_with_one() -> None:
    chance = np.random.default_rng(5)
    missed, widths, single = 0, [], []
    for _ in range(300):
        # Each fact has a loss rate of its own, so its probes agree more than chance.
        rate = chance.beta(0.5, 6, size=(120, 1))
        lost = (chance.random((120, 3)) < rate).astype(float)
        gained = (chance.random((120, 3)) < 0.02).astype(float)
        units = (gained - lost).mean(axis=1)
        bounds = paired_difference(units.tolist(), 0.95)
        missed += bounds.low > 0.02 - 0.5 / 6.5
        widths.append(units.mean() - bounds.low)
        one = (gained - lost)[:, 0]
        single.append(one.mean() - paired_difference(one.tolist(), 0.95).low)
    assert missed / 300 < 0.085
    assert np.mean(widths) < 0.8 * np.mean(single)


@pytest.mark.parametrize(("share", "n"), [(0.5, 20), (0.6, 43), (0.8, 100)])
def test_a_share_lies_below_its_lower_bound_in_about_one_of_twenty(share: float, n: int) -> None:
    chance = np.random.default_rng(5)
    passed = chance.binomial(n, share, size=4000)
    missed = sum(wilson(each / n, n, 0.95).low > share for each in passed.tolist())
    assert missed / 4000 < 0.075
