"""Protection: which tracked facts resist an edit, and which are left to probe it.

A sync daemon knows facts that must stay. Half of the subjects (by a hash of their Q-id) lend their texts to the solve;
only the other half is ever probed, so probes stay disjoint from what shaped the weights.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from sqlmodel import col, select

from editor import fill
from store.tables import Change, Control, Fact

if TYPE_CHECKING:
    from collections.abc import Collection

    from sqlmodel import Session

    from daemon.runtime import Runtime

PROTECTED = "protected"
"""Control: the pinned texts as JSON, ``[[qid, text], ...]``."""


def protects(qid: str) -> bool:
    """Whether a subject lends its facts to the solve; otherwise it may be probed."""
    return hashlib.sha256(qid.encode()).digest()[0] % 2 == 0


def protected_texts(runtime: Runtime, edited: Collection[str]) -> list[str]:
    """The texts that resist, less those about edited subjects.

    They are chosen once for the life of a state, so that a version stays a function of its ledger.
    """
    with runtime.database.transaction() as session:
        pinned = session.get(Control, PROTECTED)
        if pinned is None:
            pinned = Control(key=PROTECTED, value=json.dumps(_choose(runtime, session)))
            session.add(pinned)
        texts = json.loads(pinned.value)
    return [text for qid, text in texts if qid not in edited]


def _choose(runtime: Runtime, session: Session) -> list[tuple[str, str]]:
    """Facts of protecting subjects that have not changed, up to the configured number."""
    changed = set(session.exec(select(Change.qid)))
    facts = [
        fact
        for fact in session.exec(select(Fact).order_by(col(Fact.qid), col(Fact.pid)))
        if fact.pid in runtime.relations and len(fact.values) == 1 and protects(fact.qid) and fact.qid not in changed
    ]
    facts.sort(key=lambda fact: hashlib.sha256(f"{fact.qid} {fact.pid}".encode()).digest())
    terminator = runtime.settings.edit.terminator
    return [
        (
            fact.qid,
            f"{fill(runtime.relations[fact.pid].prompt, fact.subject_label)} {fact.values[0]['label']}{terminator}",
        )
        for fact in facts[: runtime.settings.edit.protected_facts]
    ]
