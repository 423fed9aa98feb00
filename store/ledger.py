"""Questions about versions, ledgers and cycles, and the two moves that decide a version."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlmodel import col, func, select

from store.errors import UnknownVersion, WrongState
from store.tables import Cycle, Edit, LedgerEntry, Outcome, Phase, Version, VersionState, key

if TYPE_CHECKING:
    from datetime import datetime

    from sqlmodel import Session


def get_version(session: Session, version_id: int) -> Version:
    """Find a version by its number.

    Raises:
        UnknownVersion: there is none.

    """
    version = session.get(Version, version_id)
    if version is None:
        raise UnknownVersion(version_id)
    return version


def promoted(session: Session) -> Version | None:
    """Find the version that is promoted now; None before the first promotion."""
    return session.exec(select(Version).where(Version.state == VersionState.PROMOTED)).one_or_none()


def ledger_edits(session: Session, version_id: int) -> list[Edit]:
    """List the edits that are live in the version, oldest first.

    Raises:
        UnknownVersion: there is no such version (an empty ledger would mean the base model).

    """
    get_version(session, version_id)
    edits = (
        select(Edit)
        .join(LedgerEntry, col(LedgerEntry.edit_id) == col(Edit.id))
        .where(LedgerEntry.version_id == version_id)
        .order_by(col(Edit.id))
    )
    return list(session.exec(edits))


def strengths(session: Session, version_id: int) -> dict[int, float]:
    """How strongly the version writes each of its edits, by the edit's number; 1 is as the settings say."""
    entries = select(LedgerEntry.edit_id, LedgerEntry.strength).where(LedgerEntry.version_id == version_id)
    return dict(session.exec(entries).all())


def ledger_batches(session: Session, version_id: int) -> list[list[Edit]]:
    """The version's edits by the version that first had them, oldest first: the batches in which they came.

    Raises:
        UnknownVersion: there is no such version.

    """
    first = dict(
        session.exec(
            select(LedgerEntry.edit_id, func.min(LedgerEntry.version_id)).group_by(col(LedgerEntry.edit_id))
        ).all()
    )
    batches: dict[int, list[Edit]] = {}
    for edit in ledger_edits(session, version_id):
        batches.setdefault(first[key(edit)], []).append(edit)
    return [batches[version] for version in sorted(batches)]


def retracted_edits(session: Session, version_id: int) -> list[Edit]:
    """List edits that were once promoted and whose slot the version does not write, newest first, one per slot.

    Raises:
        UnknownVersion: there is no such version.

    """
    written = {(edit.qid, edit.pid) for edit in ledger_edits(session, version_id)}
    once_live = (
        select(Edit)
        .join(LedgerEntry, col(LedgerEntry.edit_id) == col(Edit.id))
        .join(Version, col(Version.id) == col(LedgerEntry.version_id))
        .where(col(Version.state).in_((VersionState.PROMOTED, VersionState.RETIRED)))
        .order_by(col(Edit.id).desc())
    )
    newest: dict[tuple[str, str], Edit] = {}
    for edit in session.exec(once_live):
        if (edit.qid, edit.pid) not in written:
            newest.setdefault((edit.qid, edit.pid), edit)
    return list(newest.values())


def live_edit(session: Session, qid: str, pid: str) -> Edit | None:
    """Find the edit of a slot that is live in the promoted version."""
    edits = (
        select(Edit)
        .join(LedgerEntry, col(LedgerEntry.edit_id) == col(Edit.id))
        .join(Version, col(Version.id) == col(LedgerEntry.version_id))
        .where(Edit.qid == qid, Edit.pid == pid, Version.state == VersionState.PROMOTED)
    )
    return session.exec(edits).one_or_none()


def was_ever_live(session: Session, qid: str, pid: str) -> bool:
    """Whether an edit of a slot is, or was, live in a promoted version."""
    entries = (
        select(LedgerEntry.edit_id)
        .join(Edit, col(LedgerEntry.edit_id) == col(Edit.id))
        .join(Version, col(Version.id) == col(LedgerEntry.version_id))
        .where(Edit.qid == qid, Edit.pid == pid)
        .where(col(Version.state).in_((VersionState.PROMOTED, VersionState.RETIRED)))
    )
    return session.exec(entries.limit(1)).first() is not None


def next_version_id(session: Session) -> int:
    """Give the number of the next version: 0 for the base, then one more than the highest ever used."""
    highest = session.exec(select(func.max(Version.id))).one()
    return 0 if highest is None else highest + 1


def unfinished_cycle(session: Session) -> Cycle | None:
    """Find the cycle to resume: the oldest one whose phase is not ``done``."""
    unfinished = select(Cycle).where(Cycle.phase != Phase.DONE).order_by(col(Cycle.id)).limit(1)
    return session.exec(unfinished).first()


def held_candidate(session: Session) -> Version | None:
    """Find the candidate that waits for an operator: the newest one whose last cycle ended ``held``."""
    candidates = select(Version).where(Version.state == VersionState.CANDIDATE).order_by(col(Version.id).desc())
    for candidate in session.exec(candidates):
        last = select(Cycle).where(Cycle.candidate_id == candidate.id).order_by(col(Cycle.id).desc()).limit(1)
        cycle = session.exec(last).first()
        if cycle is not None and cycle.outcome == Outcome.HELD:
            return candidate
    return None


def promote(session: Session, version: Version, reason: str, now: datetime) -> Version:
    """Make ``version`` the promoted one and retire the present one; nothing happens if it is already.

    This is the only place where a version becomes promoted or retired. A rollback is the promotion of a
    retired version. Returns the version as it is in ``session``.

    Raises:
        UnknownVersion: the version is not recorded.
        WrongState: the version was rejected.

    """
    version = get_version(session, version.id)
    if version.state == VersionState.PROMOTED:
        return version
    if version.state == VersionState.REJECTED:
        raise WrongState(
            f"version {version.id} was rejected ({version.reason}): promote a candidate or a retired version"
        )
    present = promoted(session)
    if present is not None:
        _decide(present, VersionState.RETIRED, f"replaced by version {version.id}: {reason}", now)
        # Written before the other, or the database would see two promoted versions for an instant.
        session.flush()
    _decide(version, VersionState.PROMOTED, reason, now)
    session.flush()
    return version


def reject(session: Session, version: Version, reason: str, now: datetime) -> Version:
    """Reject the candidate ``version``; nothing happens if it is rejected already.

    Returns the version as it is in ``session``.

    Raises:
        UnknownVersion: the version is not recorded.
        WrongState: the version is promoted or was.

    """
    version = get_version(session, version.id)
    if version.state == VersionState.REJECTED:
        return version
    if version.state != VersionState.CANDIDATE:
        raise WrongState(f"version {version.id} is {version.state}, not a candidate: use `factsyncd rollback`")
    _decide(version, VersionState.REJECTED, reason, now)
    session.flush()
    return version


def _decide(version: Version, state: VersionState, reason: str, now: datetime) -> None:
    version.state = state
    version.reason = reason
    version.decided_at = now
