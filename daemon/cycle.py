"""One cycle: pull, diff, batch, edit, validate, promote, publish.

Each phase commits its effects together with the name of the phase that follows, so a cycle that was killed goes on
where it stood: what was committed is not done again, and what was not is done anew from the same inputs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from daemon.batch import batch
from daemon.diff import diff
from daemon.edit import edit
from daemon.promote import promote
from daemon.publish import publish
from daemon.pull import pull
from daemon.validate import validate
from store.cycles import current_cycle, cycle_of
from store.ledger import held_candidate, unfinished_cycle
from store.tables import Cycle, Phase

if TYPE_CHECKING:
    from collections.abc import Callable

    from daemon.runtime import Runtime

PHASES: dict[Phase, Callable[[Runtime, int], None]] = {
    Phase.PULL: pull,
    Phase.DIFF: diff,
    Phase.BATCH: batch,
    Phase.EDIT: edit,
    Phase.VALIDATE: validate,
    Phase.PROMOTE: promote,
    Phase.PUBLISH: publish,
}


def run_cycle(runtime: Runtime, until: Phase = Phase.DONE) -> Cycle:
    """Run a cycle to its end (or up to ``until``), or the unfinished one from where it stood.

    While a held candidate waits for an operator nothing new is begun, and its cycle is returned.

    Raises:
        Interrupted: a stop was asked for; the next call goes on.
        SourceError, EditorError, StoreError: the phase failed; the next call tries it again.
    """
    cycle = _begin(runtime)
    phases = list(Phase)
    while phases.index(cycle.phase) < phases.index(until):
        assert cycle.id is not None
        with runtime.metrics.phase(cycle.phase):
            runtime.log.info("phase", cycle=cycle.id, phase=cycle.phase.value)
            PHASES[cycle.phase](runtime, cycle.id)
        cycle = _load(runtime, cycle.id)
    return cycle


def _begin(runtime: Runtime) -> Cycle:
    with runtime.database.transaction() as session:
        waiting = held_candidate(session)
        cycle = unfinished_cycle(session) if waiting is None else cycle_of(session, waiting.id)
        if cycle is None:
            cycle = Cycle()
            session.add(cycle)
            session.flush()
    return cycle


def _load(runtime: Runtime, cycle_id: int) -> Cycle:
    with runtime.database.read() as session:
        return current_cycle(session, cycle_id)
