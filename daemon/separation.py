"""Separation: probes must not have shaped the weights that they measure. Probe sets are chosen so; this checks it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from daemon.errors import ProbesOverlap
from daemon.probes import OF_EDITS, STABLE, Kind, Probe
from daemon.protection import protects
from editor import fill

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from store.tables import Edit


def check_separation(
    probes: Iterable[Probe], edits: Sequence[Edit], contexts: Sequence[str], protected: Sequence[str]
) -> None:
    """Refuse probes that an edit, a context, a protected text or the calibration has used.

    Args:
        probes: the set; edit prompts themselves (efficacy, retention, reversal) are no held-out probes.
        edits: of the ledger.
        contexts: templates under which edits are computed.
        protected: texts that resist the edits, as prompt and answer.

    Raises:
        ProbesOverlap: names the first probe that is not apart, and from what.
    """
    written = {
        fill(wording, edit.subject): f"the edit of {edit.qid} {edit.pid}"
        for edit in edits
        for wording in (edit.prompt, *edit.variants)
    }
    for probe in probes:
        if probe.kind in OF_EDITS or probe.kind is Kind.REVERSAL:
            continue
        what = f"the {probe.kind.value} probe {probe.prompt!r} ({probe.qid} {probe.pid})"
        if probe.prompt in written:
            raise ProbesOverlap(
                f"{what} is also a wording of {written[probe.prompt]}: change its wordings in the relation catalogue"
            )
        if probe.kind in STABLE and probe.kind is not Kind.TASK and protects(probe.qid):
            raise ProbesOverlap(f"{what} is about a subject whose facts protect or calibrate: report this")
        for text in (*contexts, *protected):
            if probe.prompt in text:
                raise ProbesOverlap(f"{what} occurs in {text!r}, which shapes the weights: take it out of the probes")
