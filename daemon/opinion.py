"""Second opinion: before a value is displaced or withdrawn, another interface of the source is asked whether it agrees.

The query service is a copy that can be wrong where Wikidata itself is right.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlmodel import col, select

from daemon.errors import TooEarly
from daemon.patience import asking
from sources import SourceError
from store.tables import Change, ChangeState, utc_now, value_ids

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from sqlmodel import Session

    from daemon.runtime import Runtime

Slot = tuple[str, str]


@dataclass(frozen=True)
class Opinions:
    """What the second opinion says about pending changes, by their group.

    Attributes:
        against: why it does not agree.
        unheard: what it could not be asked about now.

    """

    against: Mapping[int, str]
    unheard: Collection[int] = ()


def second_opinions(runtime: Runtime) -> Opinions:
    """Ask about all pending changes that displace or withdraw a value; an opinion that cannot be had is no error."""
    address = runtime.settings.source.second_opinion
    if address is None:
        return Opinions({})
    with runtime.database.read() as session:
        groups = _destructive(session)
    if not groups:
        return Opinions({})
    try:
        with asking(runtime, address):
            qids = list(dict.fromkeys(change.qid for change in groups.values()))
            seen = runtime.open_second_opinion(address).observe(qids, utc_now())
    except (SourceError, TooEarly) as error:
        runtime.metrics.second_opinion("unheard", len(groups))
        runtime.log.warning("no second opinion", changes=len(groups), detail=str(error))
        return Opinions({}, set(groups))
    said: dict[Slot, list[str]] = {(one.qid, one.pid): [value.id for value in one.values] for one in seen}
    against = {
        group: _disagreement(change, said)
        for group, change in groups.items()
        if said.get((change.qid, change.pid), []) != value_ids(change.new_values)
    }
    runtime.metrics.second_opinion("agrees", len(groups) - len(against))
    runtime.metrics.second_opinion("disagrees", len(against))
    return Opinions(against)


def _destructive(session: Session) -> dict[int, Change]:
    """Pending changes that displace or withdraw a value, by group: the change that was read from the source."""
    groups = {}
    for change in session.exec(select(Change).where(Change.state == ChangeState.PENDING).order_by(col(Change.id))):
        taken = set(value_ids(change.old_values)) - set(value_ids(change.new_values))
        if taken and change.group not in groups:
            groups[change.group] = session.get_one(Change, change.group)
    return groups


def _disagreement(change: Change, said: Mapping[Slot, list[str]]) -> str:
    ids = ", ".join(said.get((change.qid, change.pid), [])) or "nothing"
    return f"the second opinion says {ids}, not {', '.join(value_ids(change.new_values)) or 'nothing'}"
