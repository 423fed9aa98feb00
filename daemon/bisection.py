"""Bisection: which of a batch's changes a candidate must leave out. Pure: no model, no database.

A trial is one candidate, solved and measured. The search is written as if trials could simply be run; what was tried
is looked up, and the first trial that was not ends it with :class:`Untried`. So the trials on record are all its
state, and a killed cycle goes on with the same search.

In order: an edit that does not take is tried with more strength; what the trial itself proves guilty is left out; and
where the candidate is then still rejected, suspects are left out, twice as many each time, until it no longer is, and
taken back by halves until only those are out that harm.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

FEW = 0.5
"""Where more than this share of a batch seems guilty by itself, it is the candidate that is broken, not they."""


@dataclass(frozen=True)
class Trial:
    """What a candidate is made of.

    Attributes:
        withheld: the changes (by group) that it leaves out.
        raised: the changes (by group) that it writes with more strength, and how many times it was raised.
    """

    withheld: frozenset[int] = frozenset()
    raised: Mapping[int, int] = field(default_factory=dict)

    def without(self, groups: frozenset[int]) -> Trial:
        """The same with more left out."""
        return replace(self, withheld=self.withheld | groups)

    def raise_strength(self, groups: frozenset[int]) -> Trial:
        """The same with some written once more strongly."""
        return replace(self, raised={**self.raised, **{group: self.raised.get(group, 0) + 1 for group in groups}})


@dataclass(frozen=True)
class Tried:
    """What became of a trial.

    Attributes:
        rejected: whether the gate rejects it.
        missed: groups whose edit is in it and does not take.
        guilty: groups that harm by the evidence of their own probes.
        suspects: groups with an edit in it, the most suspicious first.
    """

    rejected: bool
    missed: frozenset[int]
    guilty: frozenset[int]
    suspects: tuple[int, ...]


@dataclass(frozen=True)
class Limits:
    """How long to search: trials in all, and how often an edit's strength is raised."""

    trials: int
    raises: int


@dataclass(frozen=True)
class Found:
    """How a search ended.

    Attributes:
        trial: the one to go on with; None where every one was rejected.
        missed: left out because they do not take.
        guilty: left out by the evidence of their own probes.
        harmful: left out because with each of them a trial was rejected and without it none.
        unresolved: left out because there were no trials left to tell them apart.
    """

    trial: Trial | None
    missed: frozenset[int] = frozenset()
    guilty: frozenset[int] = frozenset()
    harmful: frozenset[int] = frozenset()
    unresolved: frozenset[int] = frozenset()


class Untried(Exception):
    """The search needs to know what becomes of ``trial``."""

    def __init__(self, trial: Trial) -> None:
        super().__init__(trial)
        self.trial = trial


class _OutOfTrials(Exception):
    pass


def search(tried: Mapping[tuple[frozenset[int], frozenset[tuple[int, int]]], Tried], limits: Limits) -> Found:
    """The outcome of the search, as far as the trials on record lead.

    Args:
        tried: what became of each trial, by :func:`key_of`.
        limits: of the search.

    Raises:
        Untried: a trial has to be made first.
    """

    def run(trial: Trial) -> Tried:
        known = tried.get(key_of(trial))
        if known is None:
            if len(tried) >= limits.trials:
                raise _OutOfTrials
            raise Untried(trial)
        return known

    return _Search(run, limits).found()


def key_of(trial: Trial) -> tuple[frozenset[int], frozenset[tuple[int, int]]]:
    """What two equal trials have in common."""
    return trial.withheld, frozenset(trial.raised.items())


class _Search:
    """The search while it goes on; ``_best`` is the trial with the most in it that is not rejected."""

    def __init__(self, run: Callable[[Trial], Tried], limits: Limits) -> None:
        self._run = run
        self._limits = limits
        self._missed: set[int] = set()
        self._guilty: set[int] = set()
        self._harmful: set[int] = set()
        self._best: Trial | None = None

    def found(self) -> Found:
        with suppress(_OutOfTrials):
            self._best = self._end()
        if self._best is None:
            return Found(None)
        missed, guilty, harmful = (
            self._best.withheld & which for which in (self._missed, self._guilty, self._harmful)
        )  # fmt: skip
        return Found(self._best, missed, guilty, harmful, self._best.withheld - missed - guilty - harmful)

    def _end(self) -> Trial | None:
        """The trial that is left when nothing more is to be said against what it holds."""
        trial = Trial()
        while True:
            tried = self._run(trial)
            if not tried.rejected:
                self._best = trial
            following = self._by_itself(trial, tried)
            if following is None and not tried.rejected:
                return trial
            if following is None:
                following = self._bisect(trial, tried.suspects)
                if following is None:
                    return self._best
            trial = following

    def _by_itself(self, trial: Trial, tried: Tried) -> Trial | None:
        """The next trial by what this one says of single edits, if it says anything."""
        missed = tried.missed - tried.guilty
        weak = frozenset(group for group in missed if trial.raised.get(group, 0) < self._limits.raises)
        out = tried.guilty | (missed - weak)
        if len(out) > max(1, FEW * len(tried.suspects)) or not (out or weak):
            return None
        self._guilty |= tried.guilty
        stronger = trial.raise_strength(weak).without(out)
        if weak and not tried.rejected and self._run(stronger).rejected:
            # With more strength they do harm.
            stronger, weak = trial.without(out | weak), frozenset()
        self._missed |= missed - weak
        return stronger

    def _bisect(self, trial: Trial, suspects: Sequence[int]) -> Trial | None:
        """A trial that is not rejected and from which only what harms is missing; None where there is none."""
        out = self._widen(trial, suspects)
        if out is None:
            return None
        self._best = trial.without(frozenset(out))
        # All of it together is in the rejected trial. The least suspicious are most likely to come back whole.
        back = self._narrow(trial, tuple(reversed(out)), frozenset(), frozenset(out), known_bad=True)
        return trial.without(frozenset(out) - back)

    def _widen(self, trial: Trial, suspects: Sequence[int]) -> Sequence[int] | None:
        """The fewest of the most suspicious, doubled each time, without which the trial is not rejected."""
        count = 1
        while count < len(suspects):
            if not self._run(trial.without(frozenset(suspects[:count]))).rejected:
                return suspects[:count]
            count *= 2
        return None

    def _narrow(
        self, trial: Trial, block: Sequence[int], back: frozenset[int], out: frozenset[int], *, known_bad: bool
    ) -> frozenset[int]:
        """Take a block back in, or as much of it as does no harm; returns all that is ``back`` then."""
        if not known_bad:
            whole = trial.without(out - back - set(block))
            if not self._run(whole).rejected:
                self._best = whole
                return back.union(block)
        if len(block) == 1:
            self._harmful.update(block)
            return back
        half = len(block) // 2
        first = self._narrow(trial, block[:half], back, out, known_bad=False)
        # If the first half came back whole, what harms is in the second.
        harms = len(first) - len(back) == half
        return self._narrow(trial, block[half:], first, out, known_bad=harms)
