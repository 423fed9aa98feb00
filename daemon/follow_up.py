"""Follow-up: a promoted version is asked what the version before it was asked, so that the two can be compared.

An edit may move any belief, but to ask for every recorded fact would cost what is tracked, not what changed. What the
version before was never asked has nothing to compare with; of the rest the slots whose edits differ come first, then
those with the newest changes, up to ``diff.compared``. Older versions keep their beliefs, so after a rollback there is
nothing to ask.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlmodel import col, func, select

from daemon.beliefs import measure_beliefs
from daemon.questions import questions_about
from store.ledger import ledger_edits, promoted
from store.tables import Belief, Change, ChangeState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlmodel import Session

    from daemon.runtime import Runtime
    from store.tables import Version

TOLD = (
    ChangeState.PENDING, ChangeState.HELD, ChangeState.BATCHED, ChangeState.WITHDRAWN, ChangeState.LIVE,
    ChangeState.UNEDITABLE,
)  # fmt: skip
"""States of a change that is taken to be true, whatever became of it."""


def follow_up(runtime: Runtime) -> int:
    """Ask the promoted version what it has not been asked yet; returns how many beliefs were measured.

    Doing it again asks nothing.

    Raises:
        StoreError, EditorError: the promoted version cannot be read or probed.
    """
    with runtime.database.read() as session:
        version = promoted(session)
        if version is None or version.parent_id is None:
            return 0
        changes = _changes(session, _slots(session, version, version.parent_id), runtime.settings.diff.compared)
        questions = questions_about(runtime, session, changes)
    measured = measure_beliefs(runtime, version, questions)
    with runtime.database.transaction() as session:
        for belief in measured:
            session.merge(belief)
    if measured:
        runtime.log.info("followed up", version=version.id, beliefs=len(measured))
    return len(measured)


def _slots(session: Session, version: Version, parent: int) -> dict[tuple[str, str], bool]:
    """The slots to ask about, and whether the two versions have other edits of each."""
    edited, before = ({edit.id: edit for edit in ledger_edits(session, number)} for number in (version.id, parent))
    differing = {
        (edit.qid, edit.pid) for number, edit in (edited | before).items() if (number in edited) != (number in before)
    }
    asked = {number: set(session.exec(select(Belief.qid, Belief.pid).where(Belief.version_id == number)))
             for number in (version.id, parent)}  # fmt: skip
    return {slot: slot in differing for slot in (differing | asked[parent]) - asked[version.id]}


def _changes(session: Session, slots: dict[tuple[str, str], bool], most: int) -> Sequence[Change]:
    """The last change of each slot that was taken to be true; of slots with other edits, and newest, first."""
    if not slots:
        return []
    newest = select(func.max(Change.id)).where(col(Change.state).in_(TOLD)).group_by(col(Change.qid), col(Change.pid))
    found = [
        change for change in session.exec(select(Change).where(col(Change.id).in_(newest)))
        if (change.qid, change.pid) in slots
    ]  # fmt: skip
    found.sort(key=lambda change: (not slots[change.qid, change.pid], -(change.id or 0)))
    return found[:most]
