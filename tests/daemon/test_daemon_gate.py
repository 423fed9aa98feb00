"""The gate: a pure rule, so it can be tried with any figures."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.config import GateSection
from daemon.gate import Comparison, Decision, Measurement, Verdict, capacity, compare, decide, reasons

SETTINGS = GateSection()
MEASURES = ("efficacy", "paraphrase", "neighbourhood", "control")


def measured(n: int = 100, perplexity: float = 20.0, **shares: float) -> Measurement:
    return Measurement(
        dict.fromkeys(MEASURES, 1.0) | shares, dict.fromkeys(MEASURES, n), perplexity, perplexity_tokens=4000
    )


def judged(
    candidate: Measurement, *, promoted: Measurement | None = None, base: Measurement | None = None,
    settings: GateSection = SETTINGS,
) -> list[Comparison]:  # fmt: skip
    return compare(candidate, {"base": base or measured(), "promoted": promoted or measured()}, settings)


def failing(comparisons: list[Comparison]) -> set[tuple[str, str]]:
    return {(c.measure, c.against) for c in comparisons if c.verdict is Verdict.FAIL}


def test_a_candidate_that_keeps_everything_is_promoted() -> None:
    comparisons = judged(measured())
    assert decide(comparisons) is Decision.PROMOTE
    assert len(comparisons) == 2 + 2 * 3
    assert reasons(comparisons) == "all 8 comparisons passed"


def test_a_figure_exactly_at_its_threshold_passes() -> None:
    at_limit = measured(efficacy=0.95, paraphrase=0.6, perplexity=20.0 * 1.03)
    loose = SETTINGS.model_copy(update={"perplexity_max_rise": 0.03 + 1e-12})
    assert decide(judged(at_limit, settings=loose)) is Decision.PROMOTE


@pytest.mark.parametrize(
    ("worse", "names"),
    [
        ({"efficacy": 0.94}, {("efficacy", "floor")}),
        ({"paraphrase": 0.59}, {("paraphrase", "floor")}),
        ({"neighbourhood": 0.94}, {("neighbourhood", "base"), ("neighbourhood", "promoted")}),
        ({"control": 0.97}, {("control", "base"), ("control", "promoted")}),
        ({"perplexity": 20.7}, {("perplexity", "base"), ("perplexity", "promoted")}),
    ],
)
def test_each_measure_can_fail_alone(worse: dict[str, float], names: set[tuple[str, str]]) -> None:
    comparisons = judged(measured(**worse))
    assert failing(comparisons) == names
    assert decide(comparisons) is Decision.REJECT
    assert all(measure in reasons(comparisons) for measure in worse)


def test_losses_cannot_creep_past_the_base() -> None:
    # Each step is within the allowed drop of the promoted version, the sum is not.
    comparisons = judged(measured(control=0.975), promoted=measured(control=0.985))
    assert failing(comparisons) == {("control", "base")}
    assert decide(comparisons) is Decision.REJECT


@pytest.mark.parametrize("kind", ["neighbourhood", "control"])
def test_too_few_probes_hold(kind: str) -> None:
    few = measured()
    few = dataclasses.replace(few, counts=dict(few.counts) | {kind: SETTINGS.minimum_probes - 1})
    comparisons = judged(few)
    assert {c.measure for c in comparisons if c.verdict is Verdict.INCONCLUSIVE} == {kind}
    assert decide(comparisons) is Decision.HOLD
    assert "the gate needs 20" in reasons(comparisons)


def test_a_failure_outweighs_what_is_inconclusive() -> None:
    assert decide(judged(measured(n=1, efficacy=0.0))) is Decision.REJECT


def test_without_a_live_edit_the_floors_have_nothing_to_say() -> None:
    withdrawn = Measurement({"neighbourhood": 1.0, "control": 1.0}, {"neighbourhood": 50, "control": 50}, 20.0, 4000)
    comparisons = judged(withdrawn)
    assert [c.n for c in comparisons if c.against == "floor"] == [0, 0]
    assert decide(comparisons) is Decision.PROMOTE


@pytest.mark.parametrize("where", ["candidate", "reference"])
def test_a_perplexity_that_is_not_a_number_fails(where: str) -> None:
    broken, fine = measured(perplexity=math.nan), measured()
    comparisons = judged(broken) if where == "candidate" else judged(fine, base=broken, promoted=broken)
    assert {measure for measure, _ in failing(comparisons)} == {"perplexity"}
    assert decide(comparisons) is Decision.REJECT
    assert all(c.candidate is None or math.isfinite(c.candidate) for c in comparisons)


def test_an_infinite_perplexity_fails() -> None:
    assert decide(judged(measured(perplexity=math.inf))) is Decision.REJECT
    both = measured(perplexity=math.inf)
    assert decide(judged(both, base=both, promoted=both)) is Decision.REJECT


@pytest.mark.parametrize("key", ["efficacy_min", "paraphrase_min"])
def test_an_impossible_floor_rejects(key: str) -> None:
    assert decide(judged(measured(), settings=SETTINGS.model_copy(update={key: 1.01}))) is Decision.REJECT


@pytest.mark.parametrize("key", ["neighbourhood_max_drop", "control_max_drop", "perplexity_max_rise"])
def test_an_impossible_limit_rejects(key: str) -> None:
    assert decide(judged(measured(), settings=SETTINGS.model_copy(update={key: -0.01}))) is Decision.REJECT


def test_no_comparison_holds() -> None:
    assert decide([]) is Decision.HOLD


SHARE = st.floats(0, 1)
PERPLEXITY = st.one_of(st.floats(1, 1e6), st.just(math.nan), st.just(math.inf))


@st.composite
def measurements(draw: st.DrawFn) -> Measurement:
    shares = {measure: draw(SHARE) for measure in MEASURES}
    return Measurement(shares, dict.fromkeys(MEASURES, draw(st.integers(0, 60))), draw(PERPLEXITY), 4000)


@given(measurements(), measurements(), measurements(), st.sampled_from(MEASURES), SHARE)
def test_a_lower_figure_never_turns_a_rejection_into_a_promotion(
    candidate: Measurement, promoted: Measurement, base: Measurement, measure: str, factor: float
) -> None:
    before = decide(judged(candidate, promoted=promoted, base=base))
    lower = dict(candidate.shares) | {measure: candidate.shares[measure] * factor}
    after = decide(judged(dataclasses.replace(candidate, shares=lower), promoted=promoted, base=base))
    if after is Decision.PROMOTE:
        assert before is Decision.PROMOTE
    if before is Decision.REJECT:
        assert after is Decision.REJECT


@given(measurements(), measurements(), measurements(), st.floats(1, 100))
def test_a_higher_perplexity_never_turns_a_rejection_into_a_promotion(
    candidate: Measurement, promoted: Measurement, base: Measurement, factor: float
) -> None:
    before = decide(judged(candidate, promoted=promoted, base=base))
    worse = dataclasses.replace(candidate, perplexity=candidate.perplexity * factor)
    if before is Decision.REJECT:
        assert decide(judged(worse, promoted=promoted, base=base)) is Decision.REJECT


@given(measurements(), measurements(), measurements())
def test_a_version_is_promoted_only_where_every_comparison_passed(
    candidate: Measurement, promoted: Measurement, base: Measurement
) -> None:
    comparisons = judged(candidate, promoted=promoted, base=base)
    everything = all(c.verdict is Verdict.PASS for c in comparisons)
    assert (decide(comparisons) is Decision.PROMOTE) == everything


def test_a_full_layer_is_said_but_decides_nothing() -> None:
    room, full = (capacity(load, 0.1, SETTINGS.capacity_warning) for load in (0.2, 0.7))
    assert (room.candidate, full.candidate) == (0.2, 0.7)
    assert room.verdict is full.verdict is Verdict.PASS
    assert "displace" in full.detail
    assert "displace" not in room.detail
    assert decide([*judged(measured()), full]) is Decision.PROMOTE
