"""Edit: solve the candidate's weights from the pristine base over its whole ledger, and put them on disk.

With the strategies ``sequential`` and ``null_space`` the ledger is written batch after batch, as it came.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from daemon.batch import request_of
from daemon.protection import protected_texts
from daemon.runtime import BASE_VERSION
from editor import write_version
from store import link_or_copy
from store.cycles import advance, current_cycle
from store.ledger import get_version, ledger_batches, strengths
from store.tables import Phase, key

if TYPE_CHECKING:
    from pathlib import Path

    from daemon.runtime import Runtime


def edit(runtime: Runtime, cycle_id: int) -> None:
    """Write the candidate's version directory.

    Raises:
        EditorError: the optimisation or the solve failed, or was interrupted; what is cached stays.
        StateUnwritable: the disk is full or read-only.
    """
    with runtime.database.read() as session:
        candidate = get_version(session, current_cycle(session, cycle_id).candidate_id or 0)
        batches = ledger_batches(session, candidate.id)
        strength = strengths(session, candidate.id)
        base = get_version(session, BASE_VERSION)
    ledger = [entry for batch in batches for entry in batch]
    model = runtime.model(base)
    terminator = runtime.settings.edit.terminator
    settings_digest = runtime.settings_digest(model)  # the operator may have changed them since the batch
    memit = runtime.memit(model)
    update = memit.update(
        [[request_of(entry, terminator, strength[key(entry)]) for entry in batch] for batch in batches],
        protected_texts(runtime, {entry.qid for entry in ledger}),
        runtime.progress,
    )
    with runtime.artifacts.stage(candidate.id) as staging:
        pristine = runtime.artifacts.path(BASE_VERSION)
        linked = write_version(pristine, staging, update.tensors, _link, skip=("MANIFEST.json",))
        known = runtime.artifacts.manifest(BASE_VERSION).files
        digest = runtime.artifacts.seal(
            staging,
            candidate.id,
            extra={
                "base_digest": base.digest,
                "settings_digest": settings_digest,
                "ledger": sorted(strength),
                "strengths": {str(edit_id): times for edit_id, times in sorted(strength.items()) if times != 1},
                "load": update.fit.load,
                "unwritten": update.fit.unwritten,
            },
            known={name: known[name].sha256 for name in linked},
        )
    with runtime.database.transaction() as session:
        stored = get_version(session, candidate.id)
        stored.digest, stored.settings_digest = digest, settings_digest
        stored.path = f"versions/{runtime.artifacts.path(candidate.id).name}"
        advance(session, cycle_id, Phase.VALIDATE, ledger=len(ledger))
    runtime.log.info("edited", candidate=candidate.id, ledger=len(ledger), digest=digest)


def _link(source: Path, target: Path) -> None:
    link_or_copy(source, target)
