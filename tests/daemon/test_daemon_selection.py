"""Selection as a pure function: what any backlog, in any order, may and may not become."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.selection import Policy, Reason, Selection, Waiting, select, told

if TYPE_CHECKING:
    from random import Random

UNTIMED = settings(deadline=None)
NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
DAY = timedelta(days=1)
ROOM = (
    "1 change waits for room in the ledger, which has 10 edits of at most 10: "
    "edit more layers, use a larger model or raise batch.capacity"
)
PLAIN = Policy(minimum=1, maximum=500, wait=timedelta(hours=1), aging=DAY, capacity=None)

FACTS = st.builds(
    Waiting,
    group=st.just(0),
    changes=st.integers(1, 4),
    growth=st.integers(-2, 4),
    priority=st.floats(-5, 5).map(lambda points: round(points, 2)),
    since=st.integers(0, 20_000).map(lambda minutes: NOW - timedelta(minutes=minutes)),
).map(lambda fact: replace(fact, growth=min(fact.growth, fact.changes)))
BACKLOGS = st.lists(FACTS, max_size=25).map(
    lambda facts: [replace(fact, group=number) for number, fact in enumerate(facts)]
)
POLICIES = st.builds(
    lambda least, more, wait, aging, capacity: Policy(
        least, least + more, timedelta(minutes=wait), timedelta(minutes=aging), capacity
    ),
    st.integers(1, 12),
    st.integers(0, 20),
    st.integers(0, 20_000),
    st.integers(1, 5_000),
    st.none() | st.integers(0, 60),
)
LIVE = st.integers(0, 60)


def of(backlog: list[Waiting], selection: Selection) -> list[Waiting]:
    """The facts that are taken."""
    known = {fact.group: fact for fact in backlog}
    return [known[group] for group in selection.taken]


@UNTIMED
@given(BACKLOGS, LIVE, POLICIES)
def test_each_change_is_taken_or_waits_for_a_reason(backlog: list[Waiting], live: int, policy: Policy) -> None:
    selection = select(backlog, live, policy, NOW)
    taken = of(backlog, selection)
    assert len(set(selection.taken)) == len(taken), "nothing twice"
    everything = sum(fact.changes for fact in backlog)
    assert sum(fact.changes for fact in taken) + sum(selection.waiting.values()) == everything
    assert (selection.until is None) == (Reason.BATCH not in selection.waiting)


@UNTIMED
@given(BACKLOGS, LIVE, POLICIES)
def test_no_batch_exceeds_the_maximum_unless_one_fact_alone_does(
    backlog: list[Waiting], live: int, policy: Policy
) -> None:
    taken = of(backlog, select(backlog, live, policy, NOW))
    assert len(taken) <= 1 or sum(fact.changes for fact in taken) <= policy.maximum


@UNTIMED
@given(BACKLOGS, LIVE, POLICIES)
def test_the_ledger_never_grows_beyond_its_capacity(backlog: list[Waiting], live: int, policy: Policy) -> None:
    """Whatever of a batch turns out to be unwritable or harmful later, its growing facts found room before that."""
    capacity = policy.capacity
    ledger = live
    for fact in of(backlog, select(backlog, live, policy, NOW)):
        ledger += fact.growth
        assert capacity is None or ledger <= capacity or fact.growth <= 0


@UNTIMED
@given(BACKLOGS, LIVE, POLICIES)
def test_what_does_not_grow_the_ledger_never_waits_for_room(backlog: list[Waiting], live: int, policy: Policy) -> None:
    live += sum(max(0, -fact.growth) for fact in backlog) + 1  # no more can be withdrawn than is live
    shrinking = [fact for fact in backlog if fact.growth <= 0]
    selection = select(shrinking, live, policy, NOW)
    assert Reason.CAPACITY not in selection.waiting
    # Nor do those that wait for room take its place.
    among_others = select(backlog, live, replace(policy, capacity=0), NOW)
    assert among_others.taken == selection.taken


@UNTIMED
@given(BACKLOGS, LIVE, POLICIES, st.randoms(use_true_random=False))
def test_the_order_of_the_backlog_does_not_matter(
    backlog: list[Waiting], live: int, policy: Policy, random: Random
) -> None:
    shuffled = list(backlog)
    random.shuffle(shuffled)
    assert select(shuffled, live, policy, NOW) == select(backlog, live, policy, NOW)


@UNTIMED
@given(BACKLOGS, LIVE, POLICIES)
def test_a_batch_is_large_enough_full_or_overdue(backlog: list[Waiting], live: int, policy: Policy) -> None:
    selection = select(backlog, live, policy, NOW)
    taken = of(backlog, selection)
    overdue = any(NOW - fact.since >= policy.wait for fact in taken)
    assert not taken or (
        sum(fact.changes for fact in taken) >= policy.minimum or Reason.MAXIMUM in selection.waiting or overdue
    )
    if selection.until is not None:
        assert not taken
        assert selection.until > NOW
        # By then something is taken, whatever it is.
        assert select(backlog, live, policy, selection.until).taken


@UNTIMED
@given(BACKLOGS, LIVE, POLICIES)
def test_the_more_urgent_goes_first(backlog: list[Waiting], live: int, policy: Policy) -> None:
    """Nothing is passed by what began to wait later than its higher priority makes up for."""
    unlimited = replace(policy, capacity=None, minimum=1)
    selection = select(backlog, live, unlimited, NOW)
    taken = of(backlog, selection)
    for fact in backlog:
        if fact.group not in selection.taken:
            for other in taken:
                assert other.since - fact.since <= (other.priority - fact.priority) * policy.aging + timedelta(
                    seconds=1
                )


@UNTIMED
@given(st.integers(1, 4), st.floats(-2, 0), st.floats(0, 2), st.integers(1, 3), st.integers(1, 6), st.integers(2, 3))
def test_nothing_starves_behind_what_keeps_coming(
    ends: int, low: float, high: float, maximum: int, aging_hours: int, arrivals: int
) -> None:
    """Every hour brings more urgent facts than a batch takes; the patient one goes after those that may overtake it."""
    policy = Policy(1, maximum, timedelta(0), timedelta(hours=aging_hours), None)
    patient = Waiting(0, ends, ends, low, NOW)
    backlog = [patient]
    handicap = int((high - low) * aging_hours) + 1
    bound = handicap + arrivals * (handicap + 1) + 1
    number = 0
    for hour in range(bound + 1):
        now = NOW + timedelta(hours=hour)
        for _ in range(arrivals):
            number += 1
            backlog.append(Waiting(number, 1, 1, high, now))
        taken = set(select(backlog, 0, policy, now).taken)
        if patient.group in taken:
            return
        backlog = [fact for fact in backlog if fact.group not in taken]
    raise AssertionError(f"still waits after {bound} hours")


def test_a_fact_with_many_ends_is_not_passed_by_smaller_ones_until_the_ledger_has_room() -> None:
    many = Waiting(1, 3, 3, 0.0, NOW - DAY)
    backlog = [many, Waiting(2, 1, 1, 0.0, NOW), Waiting(3, 1, 0, 0.0, NOW), Waiting(4, 1, -1, 0.0, NOW)]
    tight = replace(PLAIN, capacity=10)
    first = select(backlog, 8, tight, NOW)
    assert (first.taken, first.waiting) == ((3, 4), {Reason.CAPACITY: 4})
    assert select(backlog[:2], 7, tight, NOW).taken == (1,)
    # Of more edits than may ever be live it would block all others for ever.
    assert select(backlog[:2], 1, replace(PLAIN, capacity=2), NOW).taken == (2,)


def test_a_fact_larger_than_the_maximum_is_a_batch_of_its_own() -> None:
    small = replace(PLAIN, maximum=2)
    backlog = [Waiting(1, 1, 1, 0.0, NOW - DAY), Waiting(2, 5, 5, 0.0, NOW), Waiting(3, 1, 1, 0.0, NOW)]
    assert select(backlog, 0, small, NOW).taken == (1,)
    assert select(backlog[1:], 0, small, NOW).taken == (2,)
    assert select(backlog[2:], 0, small, NOW).taken == (3,)


def test_what_waits_is_told_with_the_reason() -> None:
    policy = Policy(5, 500, timedelta(hours=1), DAY, 10)
    backlog = [Waiting(1, 2, 0, 0.0, NOW - timedelta(minutes=10)), Waiting(2, 1, 0, 0.0, NOW)]
    backlog.append(Waiting(3, 1, 1, 0.0, NOW))
    assert told(select(backlog, 10, policy, NOW), policy, 10) == [
        "3 changes wait for a batch of 5 or until 2026-03-01 12:50 UTC",
        ROOM,
    ]
    assert told(select(backlog, 10, policy, NOW + timedelta(minutes=50)), policy, 10) == [ROOM]
