"""The search for what a candidate must leave out, over batches whose harm is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.bisection import Found, Limits, Trial, Tried, Untried, key_of, search

PLENTY = Limits(trials=10_000, raises=1)


def run(world: Callable[[Trial], Tried], limits: Limits = PLENTY) -> tuple[Found, list[Trial]]:
    """Make trials as the search asks for them, each time from the records alone, as after a kill."""
    tried: dict[object, Tried] = {}
    made: list[Trial] = []
    while True:
        try:
            return search(tried, limits), made
        except Untried as wanted:
            trial = wanted.trial
        assert trial not in made, "nothing is tried twice"
        tried[key_of(trial)] = world(trial)
        made.append(trial)


def world_of(
    size: int,
    harmful: Set[int],
    missed: Set[int] = frozenset(),
    guilty: Set[int] = frozenset(),
    curable: Set[int] = frozenset(),
    order: Sequence[int] | None = None,
) -> Callable[[Trial], Tried]:
    """Trials are rejected while anything harmful is in."""

    def tried(trial: Trial) -> Tried:
        inside = [group for group in (order or range(size)) if group not in trial.withheld]
        return Tried(
            rejected=bool(harmful & set(inside)),
            missed=frozenset(g for g in missed & set(inside) if not (g in curable and trial.raised.get(g, 0) > 0)),
            guilty=frozenset(guilty & set(inside)),
            suspects=tuple(inside),
        )

    return tried


def test_a_good_batch_takes_one_trial() -> None:
    found, made = run(world_of(10, harmful=set()))
    assert found == Found(Trial())
    assert made == [Trial()]


@given(st.integers(2, 40).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1), max_size=n - 1))))
def test_only_what_harms_is_left_out(case: tuple[int, set[int]]) -> None:
    size, harmful = case
    found, _ = run(world_of(size, harmful))
    if found.trial is None:
        assert max(harmful) >= 2 ** ((size - 1).bit_length() - 1), "given up although leaving out some would do"
        return
    assert found.trial.withheld == harmful
    assert found.harmful == harmful
    assert not found.unresolved


@given(st.permutations(range(60)), st.sets(st.integers(0, 59), min_size=5, max_size=5))
def test_suspicion_only_changes_how_long_it_takes(order: list[int], harmful: set[int]) -> None:
    found, _ = run(world_of(60, harmful, order=order))
    assert found.trial is None or found.harmful == harmful


def test_right_suspicions_make_it_short() -> None:
    harmful = {50, 51, 52, 53, 54}
    order = [*sorted(harmful), *(group for group in range(60) if group not in harmful)]
    found, made = run(world_of(60, harmful, order=order))
    assert found.harmful == harmful
    assert len(made) <= 14


def test_what_does_not_take_is_tried_with_more_strength_and_then_left_out() -> None:
    found, made = run(world_of(10, set(), missed={3, 7}, curable={3}))
    assert found.trial == Trial(frozenset({7}), {3: 1, 7: 1})
    assert found.missed == {7}
    assert [dict(trial.raised) for trial in made] == [{}, {3: 1, 7: 1}, {3: 1, 7: 1}]


def test_strength_that_does_harm_is_taken_back() -> None:
    def tried(trial: Trial) -> Tried:
        inside = frozenset(range(6)) - trial.withheld
        return Tried(bool(trial.raised.get(2)), frozenset({2}) & inside, frozenset(), tuple(sorted(inside)))

    found, _ = run(tried)
    assert found.trial == Trial(frozenset({2}))
    assert found.missed == {2}


def test_the_guilty_are_left_out_even_of_a_good_batch() -> None:
    found, made = run(world_of(10, set(), guilty={4}))
    assert found.trial == Trial(frozenset({4}))
    assert found.guilty == {4}
    assert len(made) == 2


def test_where_most_seem_guilty_the_candidate_is_broken() -> None:
    """One poisonous fact can make all the others fail; they are not thrown out for that."""

    def tried(trial: Trial) -> Tried:
        inside = frozenset(range(12)) - trial.withheld
        broken = 5 in inside
        return Tried(broken, inside if broken else frozenset(), frozenset(), tuple(sorted(inside)))

    found, _ = run(tried)
    assert found.trial == Trial(frozenset({5}), dict.fromkeys(range(12), 1))
    assert found.harmful == {5}


def test_where_most_do_not_take_all_are_written_more_strongly() -> None:
    found, made = run(world_of(10, set(), missed=set(range(9)), curable=set(range(9))))
    assert found.trial == Trial(raised=dict.fromkeys(range(9), 1))
    assert len(made) == 2


def test_a_candidate_that_is_rejected_whatever_is_left_out_is_given_up() -> None:
    def tried(trial: Trial) -> Tried:
        return Tried(True, frozenset(), frozenset(), tuple(g for g in range(8) if g not in trial.withheld))

    found, made = run(tried)
    assert found == Found(None)
    assert len(made) <= 5


@given(st.integers(1, 12), st.sets(st.integers(0, 59), min_size=1, max_size=5), st.permutations(range(60)))
def test_with_few_trials_nothing_unmeasured_is_promoted(trials: int, harmful: set[int], order: list[int]) -> None:
    world = world_of(60, harmful, order=order)
    found, made = run(world, Limits(trials, raises=1))
    assert len(made) <= trials
    if found.trial is not None:
        assert found.trial in made
        assert not world(found.trial).rejected
        assert harmful <= found.trial.withheld
        assert found.harmful <= harmful
        assert found.unresolved == found.trial.withheld - found.harmful


@pytest.mark.parametrize("rejected", [True, False])
def test_one_trial_is_a_gate_without_a_search(rejected: bool) -> None:
    found, made = run(world_of(4, {1} if rejected else set(), missed={2}), Limits(1, raises=1))
    assert len(made) == 1
    assert found.trial == (None if rejected else Trial())
