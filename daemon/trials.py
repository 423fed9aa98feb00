"""Trials: the candidates of a cycle as the search for bad edits sees them, and what it finds in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlmodel import col, select

from daemon import bisection
from daemon.bisection import Found, Limits, Tried
from daemon.evidence import Evidence, evidence_of
from daemon.gate import Comparison, Decision, Verdict, decide, reasons
from store.tables import Change, ChangeState, GateMeasure, Trial, key

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlmodel import Session

    from daemon.config import Settings


@dataclass(frozen=True)
class Measured:
    """A trial that was measured.

    Attributes:
        trial: what its candidate is made of.
        version_id: the candidate.
        decision: the gate's.
        why: the gate's reasons.
        evidence: by group of changes, what its probes say of each edit.
    """

    trial: bisection.Trial
    version_id: int
    decision: Decision
    why: str
    evidence: dict[int, list[Evidence]]

    @property
    def tried(self) -> Tried:
        """What the search needs to know of it."""
        edits = [(group, each) for group, found in self.evidence.items() for each in found]
        worst = {group: max(each.suspicion for each in found) for group, found in self.evidence.items()}
        return Tried(
            rejected=self.decision is Decision.REJECT,
            missed=frozenset(group for group, each in edits if each.missed),
            guilty=frozenset(group for group, each in edits if each.guilty),
            suspects=tuple(sorted(worst, key=lambda group: worst[group], reverse=True)),
        )


class Trials:
    """The trials of one cycle, read from the database.

    Args:
        session: of the transaction.
        cycle_id: the cycle; its batch are the changes in work.
        settings: limits and thresholds.
    """

    def __init__(self, session: Session, cycle_id: int, settings: Settings) -> None:
        changes = session.exec(select(Change).where(Change.state == ChangeState.BATCHED).order_by(col(Change.id)))
        self.changes = list(changes)
        self._limits = Limits(settings.trials.maximum, settings.trials.raises)
        rows = session.exec(select(Trial).where(Trial.cycle_id == cycle_id).order_by(col(Trial.id))).all()
        self.measured = [self._measure(session, row, settings) for row in rows]

    def search(self) -> Found:
        """How the search ends.

        Raises:
            Untried: it has not ended.
        """
        return bisection.search(
            {bisection.key_of(each.trial): each.tried for each in self.measured}, self._limits
        )  # fmt: skip

    def of(self, trial: bisection.Trial) -> Measured:
        """The trial as it was measured."""
        wanted = bisection.key_of(trial)
        return next(each for each in self.measured if bisection.key_of(each.trial) == wanted)

    def reason(self, found: Found, group: int) -> tuple[str, int]:
        """Why the search leaves a change out, and the version that shows it best."""
        last = [each for each in self.measured if group not in each.trial.withheld][-1]
        said = "; ".join(str(each) for each in last.evidence[group])
        raised = last.trial.raised.get(group, 0)
        if group in found.missed:
            strength = f", although its strength was raised {raised} times" if raised else ""
            return f"does not take{strength}: version {last.version_id} {said}", last.version_id
        if group in found.guilty:
            return f"spreads to its neighbours: in version {last.version_id} {said}", last.version_id
        # The rejected trial that lacks most else: nothing but this one tells it from one that is not rejected.
        rejected = [
            each for each in self.measured
            if group not in each.trial.withheld and each.decision is Decision.REJECT
        ]  # fmt: skip
        shown = max(rejected, key=lambda each: len(each.trial.withheld), default=last)
        if group in found.harmful:
            against = f"with it version {shown.version_id} was rejected, and without it none: {shown.why}"
            return f"{against} ({'; '.join(str(each) for each in shown.evidence[group])})", shown.version_id
        few = f"one of {len(found.unresolved)} suspects that {len(self.measured)} trials could not tell apart"
        return f"{few}; version {shown.version_id} was rejected with some of them: {shown.why}", shown.version_id

    def _measure(self, session: Session, row: Trial, settings: Settings) -> Measured:
        comparisons = recorded_comparisons(session, row.version_id)
        group_of = {key(change): change.group for change in self.changes}
        evidence: dict[int, list[Evidence]] = {}
        for each in evidence_of(session, row.version_id, {key(change) for change in self.changes}, settings.gate):
            evidence.setdefault(group_of[each.edit.change_id], []).append(each)
        trial = bisection.Trial(frozenset(row.withheld), {int(group): times for group, times in row.raised.items()})
        return Measured(trial, row.version_id, decide(comparisons), reasons(comparisons), evidence)


def recorded_comparisons(session: Session, version_id: int) -> list[Comparison]:
    """What the gate measured for a version."""
    rows = select(GateMeasure).where(GateMeasure.version_id == version_id).order_by(col(GateMeasure.id))
    return [
        Comparison(
            row.measure, row.against, row.candidate, row.reference, row.threshold, row.n,
            Verdict(row.verdict), row.detail, row.loss, row.low, row.high, row.needed,
        )
        for row in session.exec(rows)
    ]  # fmt: skip


def left_out(changes: Sequence[Change], groups: frozenset[int]) -> list[Change]:
    """The changes of some groups."""
    return [change for change in changes if change.group in groups]
