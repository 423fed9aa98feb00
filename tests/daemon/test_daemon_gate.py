"""The gate: a pure rule, so it can be tried with any figures."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.config import GateSection
from daemon.errors import MeasurementInvalid
from daemon.gate import Comparison, Decision, Measurement, Verdict, capacity, compare, decide, reasons

SETTINGS = GateSection()
LEDGER = ("efficacy", "retention")
SAMPLED = ("paraphrase", "question", "reversal")
LOCALITY = ("neighbourhood", "same_subject", "control", "task")
KINDS = (*LEDGER, *SAMPLED, *LOCALITY)


def slots(n: int, share: float = 1.0, pid: str = "P6") -> dict[tuple[str, str], float]:
    """The first facts passed, the rest failed."""
    passed = round(n * share)
    return {(f"Q{i}", pid): float(i < passed) for i in range(n)}


def pid_of(kind: str) -> str:
    """An edit is new or of a former version, not both."""
    return "P35" if kind == "retention" else "P6"


def measured(
    n: int = 200, loss: float = 3.0, entropy: float = 6.0, divergence: float = 0.02, **shares: float
) -> Measurement:
    given_shares = {kind: slots(n, shares.get(kind, 1.0), pid_of(kind)) for kind in KINDS}
    return Measurement(given_shares, [63] * 40, [63 * loss] * 40, [63 * divergence] * 40, [entropy] * 32, [0.1] * 32)


def without(measurement: Measurement, **counts: int) -> Measurement:
    """The same with other numbers of facts, all of them passed."""
    return dataclasses.replace(
        measurement, shares={**measurement.shares, **{k: slots(n, pid=pid_of(k)) for k, n in counts.items()}}
    )


def judged(
    candidate: Measurement, *, promoted: Measurement | None = None, base: Measurement | None = None,
    settings: GateSection = SETTINGS,
) -> list[Comparison]:  # fmt: skip
    """Compared with versions that were asked the same."""
    passed = {kind: dict.fromkeys(facts, 1.0) for kind, facts in candidate.shares.items()}
    same = dataclasses.replace(measured(), shares=passed)
    return compare(candidate, {"base": base or same, "promoted": promoted or same}, settings)


def having(comparisons: list[Comparison], verdict: Verdict) -> set[tuple[str, str]]:
    return {(c.measure, c.against) for c in comparisons if c.verdict is verdict}


def against_both(*measures: str) -> set[tuple[str, str]]:
    return {(measure, against) for measure in measures for against in ("base", "promoted")}


def test_a_candidate_that_keeps_everything_is_promoted() -> None:
    comparisons = judged(measured())
    assert decide(comparisons) is Decision.PROMOTE
    assert len(comparisons) == 3 + 3 + 2 * (4 + 3) + 1
    assert reasons(comparisons) == "all 21 comparisons passed"


@pytest.mark.parametrize(
    ("worse", "names"),
    [
        ({"efficacy": 0.8}, {("efficacy", "floor"), ("new_edits", "floor")}),
        ({"retention": 0.97}, {("retention", "promoted")}),
        ({"paraphrase": 0.4}, {("paraphrase", "floor")}),
        ({"question": 0.4}, {("question", "floor")}),
        ({"reversal": 0.5}, {("reversal", "floor")}),
        ({"neighbourhood": 0.8}, against_both("neighbourhood")),
        ({"same_subject": 0.8}, against_both("same_subject")),
        ({"control": 0.85}, against_both("control")),
        ({"task": 0.85}, against_both("task")),
        ({"loss": 3.06}, against_both("perplexity")),
        ({"entropy": 5.0}, against_both("fluency")),
        ({"divergence": 0.2}, {("divergence", "limit")}),
    ],
)
def test_each_measure_can_fail_alone(worse: dict[str, float], names: set[tuple[str, str]]) -> None:
    comparisons = judged(measured(**worse))
    assert having(comparisons, Verdict.FAIL) == names
    assert decide(comparisons) is Decision.REJECT
    assert all(measure in reasons(comparisons) for measure, _ in names)


def test_text_that_repeats_itself_fails() -> None:
    looping = dataclasses.replace(measured(), repetitions=[0.6] * 32)
    assert having(judged(looping), Verdict.FAIL) == against_both("repetition")


def test_losses_cannot_creep_past_the_base() -> None:
    # Each step is within the allowed drop of the promoted version, the sum is not.
    candidate = measured(control=0.9)
    promoted = measured(control=0.9)
    comparisons = judged(candidate, promoted=promoted)
    assert having(comparisons, Verdict.FAIL) == {("control", "base")}
    assert decide(comparisons) is Decision.REJECT


def test_what_is_neither_proven_harmless_nor_harmful_holds_and_says_how_many_would_tell() -> None:
    comparisons = judged(measured(n=100, control=0.97))
    assert having(comparisons, Verdict.INCONCLUSIVE) == against_both("control")
    assert decide(comparisons) is Decision.HOLD
    (undecided, _) = [c for c in comparisons if c.verdict is Verdict.INCONCLUSIVE]
    assert undecided.needed is not None
    assert undecided.needed > 100
    assert f"not decided, about {undecided.needed} facts would" in reasons(comparisons)
    enough = judged(measured(n=100 * (undecided.needed // 100 + 1), control=0.97))
    assert decide(enough) is Decision.PROMOTE


def test_an_estimate_beyond_the_margin_says_that_more_probes_would_not_help() -> None:
    comparisons = judged(measured(n=60, control=0.935))
    assert decide(comparisons) is Decision.HOLD
    assert "more probes would rather show a loss" in reasons(comparisons)


@pytest.mark.parametrize(("kind", "least"), [("neighbourhood", 32), ("control", 52)])
@pytest.mark.parametrize("n", [0, 1, 31])
def test_too_few_facts_to_prove_the_margin_hold_and_say_how_many_are_needed(kind: str, least: int, n: int) -> None:
    comparisons = judged(without(measured(), **{kind: n}))
    assert having(comparisons, Verdict.INCONCLUSIVE) == against_both(kind)
    assert {c.needed for c in comparisons if c.verdict is Verdict.INCONCLUSIVE} == {least}
    assert f"{n} facts can never prove that, {least} are needed" in reasons(comparisons)
    assert decide(judged(without(measured(), **{kind: least}))) is Decision.PROMOTE


@pytest.mark.parametrize("kind", ["same_subject", "task"])
@pytest.mark.parametrize("n", [0, 4])
def test_kinds_that_a_state_may_lack_only_count_where_a_loss_is_proven(kind: str, n: int) -> None:
    few = without(measured(), **{kind: n})
    assert decide(judged(few)) is Decision.PROMOTE
    lost = dataclasses.replace(few, shares={**few.shares, kind: dict.fromkeys(slots(n), 0.0)})
    promoted = without(measured(), **{kind: n})
    decision = decide(judged(lost, promoted=promoted, base=promoted))
    assert decision is (Decision.REJECT if n else Decision.PROMOTE)


@pytest.mark.parametrize("edits", [1, 2, 3, 5])
def test_a_small_batch_that_took_is_promoted_by_a_first_ledger(edits: int) -> None:
    small = without(measured(), efficacy=edits, retention=0, paraphrase=edits, question=edits, reversal=0)
    some = dict.fromkeys(slots(edits), 0.5)
    small = dataclasses.replace(small, shares={**small.shares, "paraphrase": some, "question": some})
    comparisons = judged(small)
    assert decide(comparisons) is Decision.PROMOTE
    assert "only a proven failure would count" in next(c.detail for c in comparisons if c.measure == "paraphrase")


def test_each_new_edit_of_a_small_batch_has_to_take_however_large_the_ledger() -> None:
    large = without(measured(), efficacy=3, retention=500)
    missed = {("Q7", "P6"): 1.0, ("Q8", "P6"): 0.0, ("Q9", "P38"): 1.0}
    comparisons = judged(dataclasses.replace(large, shares={**large.shares, "efficacy": missed}))
    assert having(comparisons, Verdict.FAIL) == {("new_edits", "floor")}
    assert "not answered: Q8 P6" in reasons(comparisons)


def test_a_lost_former_edit_is_named_also_where_it_is_within_the_margin() -> None:
    comparisons = judged(measured(retention=0.99))
    (retention,) = [c for c in comparisons if c.measure == "retention"]
    assert retention.verdict is Verdict.PASS
    assert "lost: Q198 P35, Q199 P35" in retention.detail


def test_many_missed_edits_are_counted_after_the_first() -> None:
    comparisons = judged(measured(efficacy=0.5))
    assert "and 95 more" in reasons(comparisons)


def test_a_failure_outweighs_what_is_inconclusive() -> None:
    comparisons = judged(without(measured(efficacy=0.0), control=1))
    assert having(comparisons, Verdict.INCONCLUSIVE)
    assert decide(comparisons) is Decision.REJECT
    assert reasons(comparisons).startswith("efficacy")


def test_without_a_live_edit_the_floors_have_nothing_to_say() -> None:
    withdrawn = without(measured(), **dict.fromkeys((*LEDGER, *SAMPLED, "neighbourhood"), 0))
    comparisons = judged(withdrawn)
    assert [c.n for c in comparisons if c.against == "floor"] == [0] * 5
    assert decide(comparisons) is Decision.PROMOTE


@pytest.mark.parametrize("figure", [math.nan, math.inf])
def test_a_candidate_that_cannot_read_fails_and_stores_no_such_figure(figure: float) -> None:
    comparisons = judged(measured(loss=figure))
    assert having(comparisons, Verdict.FAIL) == against_both("perplexity")
    assert decide(comparisons) is Decision.REJECT
    assert all(c.candidate is None or math.isfinite(c.candidate) for c in comparisons)


def test_with_a_reference_that_cannot_read_the_gate_does_not_decide() -> None:
    with pytest.raises(MeasurementInvalid, match="base version's reading is not a number"):
        judged(measured(), base=measured(loss=math.nan))


def test_a_base_that_writes_nothing_has_no_fluency_to_lose() -> None:
    mute = measured(entropy=0.0)
    assert decide(judged(measured(), base=mute, promoted=mute)) is Decision.PROMOTE


def test_a_loss_beyond_all_numbers_is_stored_as_none() -> None:
    comparisons = judged(measured(loss=1e6))
    assert having(comparisons, Verdict.FAIL) == against_both("perplexity")
    figures = [f for c in comparisons for f in (c.low, c.high) if f is not None]
    assert all(map(math.isfinite, figures))


@pytest.mark.parametrize("key", ["efficacy_min", "paraphrase_min"])
def test_an_impossible_floor_rejects(key: str) -> None:
    assert decide(judged(measured(), settings=SETTINGS.model_copy(update={key: 1.1}))) is Decision.REJECT


def test_no_comparison_holds() -> None:
    assert decide([]) is Decision.HOLD


# Properties


@st.composite
def measurements(draw: st.DrawFn, n: int) -> Measurement:
    shares = {
        kind: {(f"Q{i}", pid_of(kind)): draw(st.sampled_from([0.0, 0.5, 1.0, 1.0])) for i in range(n)} for kind in KINDS
    }
    losses, entropies = (draw(st.lists(st.floats(*ends), min_size=4, max_size=4)) for ends in ((1, 1e3), (0, 8)))
    return Measurement(shares, [10] * 4, losses, [0.1] * 4, entropies, [0.1] * 4)


N = 12
SMALL = SETTINGS.model_copy(update={"minimum_probes": 4, "neighbourhood_max_drop": 0.3, "control_max_drop": 0.3})


@settings(max_examples=50, deadline=None)
@given(measurements(N), measurements(N), measurements(N), st.sampled_from(KINDS), st.integers(0, N - 1))
def test_a_fact_lost_never_turns_a_rejection_into_a_promotion(
    candidate: Measurement, promoted: Measurement, base: Measurement, kind: str, at: int
) -> None:
    order = [Decision.REJECT, Decision.HOLD, Decision.PROMOTE]
    before = decide(judged(candidate, promoted=promoted, base=base, settings=SMALL))
    lower = {**candidate.shares[kind], (f"Q{at}", pid_of(kind)): 0.0}
    worse = dataclasses.replace(candidate, shares={**candidate.shares, kind: lower})
    after = decide(judged(worse, promoted=promoted, base=base, settings=SMALL))
    assert order.index(after) <= order.index(before)


@settings(max_examples=50, deadline=None)
@given(measurements(N), measurements(N))
def test_a_candidate_that_is_the_promoted_version_loses_nothing_against_it(
    version: Measurement, base: Measurement
) -> None:
    comparisons = judged(version, promoted=version, base=base, settings=SMALL)
    of_the_pair = [c for c in comparisons if c.against == "promoted"]
    assert {c.verdict for c in of_the_pair} == {Verdict.PASS}


@settings(max_examples=50, deadline=None)
@given(measurements(N), measurements(N), measurements(N))
def test_a_version_is_promoted_only_where_every_comparison_passed(
    candidate: Measurement, promoted: Measurement, base: Measurement
) -> None:
    comparisons = judged(candidate, promoted=promoted, base=base, settings=SMALL)
    everything = all(c.verdict is Verdict.PASS for c in comparisons)
    assert (decide(comparisons) is Decision.PROMOTE) == everything


# By simulation with the default settings: an operator may sleep, and so may a statistician.


def drawn(chance: np.random.Generator, gained: float, lost: float) -> Measurement:
    """A candidate that answers facts differently at random; the base passes nine of ten."""
    shares = {}
    for kind in LOCALITY:
        facts = {}
        for slot, before in reference().shares[kind].items():
            flips = chance.random() < (lost / 0.9 if before else gained / 0.1)
            facts[slot] = 1 - before if flips else before
        shares[kind] = facts
    noisy = [63 * 3.0 + chance.normal(0.3, 0.5) for _ in range(40)]
    return dataclasses.replace(measured(), shares={**measured().shares, **shares}, losses=noisy)


def reference() -> Measurement:
    return measured(**dict.fromkeys(LOCALITY, 0.9))


def decisions(gained: float, lost: float) -> list[Decision]:
    chance = np.random.default_rng(3)
    known = {"base": reference(), "promoted": reference()}
    return [decide(compare(drawn(chance, gained, lost), known, SETTINGS)) for _ in range(100)]


def test_harmless_churn_is_promoted() -> None:
    assert decisions(gained=0.01, lost=0.01).count(Decision.PROMOTE) >= 95


def test_a_loss_at_the_margin_is_not_promoted_and_twice_the_margin_is_rejected() -> None:
    assert decisions(gained=0.01, lost=0.06).count(Decision.PROMOTE) <= 5
    assert decisions(gained=0.01, lost=0.11).count(Decision.REJECT) >= 90


def test_a_full_layer_is_said_but_decides_nothing() -> None:
    room, full = (capacity(load, 0.1, SETTINGS.capacity_warning) for load in (0.2, 0.7))
    assert (room.candidate, full.candidate) == (0.2, 0.7)
    assert room.verdict is full.verdict is Verdict.PASS
    assert "displace" in full.detail
    assert "displace" not in room.detail
    assert decide([*judged(measured()), full]) is Decision.PROMOTE
