"""Evidence: what a version's probes say of each edit that it was to learn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from scipy.stats import binom
from sqlmodel import col, select

from daemon.probes import Kind
from store.ledger import ledger_edits
from store.tables import Edit, ProbeResult, key

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from sqlmodel import Session

    from daemon.config import GateSection

OWN = (Kind.EFFICACY, Kind.PARAPHRASE, Kind.QUESTION)


@dataclass(frozen=True)
class Evidence:
    """What is said against one edit.

    Attributes:
        said: the answer to its own prompt, where that is not the target.
        asked: neighbours that base and promoted version answer and that the target rivals.
        lost: those of them that the version answers with the target.
        guilty: whether so many are lost that chance does not explain it.
        failed: its own probes of other wordings that are not passed.
    """

    edit: Edit
    said: str | None
    asked: int
    lost: int
    guilty: bool
    failed: int

    @property
    def missed(self) -> bool:
        """Whether the edit does not take."""
        return self.said is not None

    @property
    def suspicion(self) -> tuple[float, ...]:
        """Larger is more suspicious. Neighbours weigh most, then what looks unlike an answer."""
        share = self.lost / self.asked if self.asked else 0.0
        return (self.guilty, self.lost > 1, share, self.missed, self.failed, len(self.edit.target), -key(self.edit))

    def __str__(self) -> str:
        """What is said against it, for an operator."""
        parts = []
        if self.said is not None:
            parts.append(f"answers {self.said!r} instead of {self.edit.target!r}")
        if self.lost:
            parts.append(
                f"{self.lost} of {self.asked} neighbours in {self.edit.pid} are answered with {self.edit.target!r}"
            )
        if self.failed:
            parts.append(f"{self.failed} of its other wordings fail")
        return ", ".join(parts) or "nothing is said against it by itself"


def evidence_of(
    session: Session, version_id: int, change_ids: Collection[int], settings: GateSection
) -> list[Evidence]:
    """Evidence on the edits of some changes that are in a version's ledger.

    An edit is guilty where, if each neighbour were lost with the probability that ``neighbourhood_max_drop`` allows,
    so many would be with a probability below 1 - ``confidence``, divided by the number of edits (Bonferroni), since
    each of them is asked.
    """
    edits = [edit for edit in ledger_edits(session, version_id) if edit.change_id in change_ids]
    rows = session.exec(
        select(ProbeResult).where(ProbeResult.version_id == version_id).order_by(col(ProbeResult.id))
    ).all()
    own: dict[tuple[str, str], list[ProbeResult]] = {}
    near: dict[tuple[str, str], list[ProbeResult]] = {}
    for row in rows:
        if row.kind in OWN:
            own.setdefault((row.qid, row.pid), []).append(row)
        elif row.kind == Kind.NEIGHBOURHOOD and row.rival is not None and row.base_correct and row.promoted_correct:
            near.setdefault((row.pid, row.rival), []).append(row)
    level = (1 - settings.confidence) / max(1, len(edits))
    return [_evidence(edit, own, near, settings.neighbourhood_max_drop, level) for edit in edits]


def _evidence(
    edit: Edit,
    own: Mapping[tuple[str, str], Sequence[ProbeResult]],
    near: Mapping[tuple[str, str], Sequence[ProbeResult]],
    margin: float,
    level: float,
) -> Evidence:
    of_edit, neighbours = own.get((edit.qid, edit.pid), ()), near.get((edit.pid, edit.target), ())
    missed = [row.answer for row in of_edit if row.kind == Kind.EFFICACY and not row.correct]
    asked, lost = len(neighbours), sum(not row.correct for row in neighbours)
    # P(at least `lost` of `asked`).
    chance = float(binom.sf(lost - 1, asked, min(1.0, margin)))
    failed = sum(not row.correct for row in of_edit if row.kind != Kind.EFFICACY)
    return Evidence(edit, missed[0] if missed else None, asked, lost, lost > 0 and chance < level, failed)
