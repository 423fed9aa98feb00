"""Patience: a source that asked to be left alone is not asked before its time, by whatever command or process."""

from __future__ import annotations

import json
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from sqlmodel import col, select

from daemon.errors import TooEarly
from sources import Banned, SourceError, Throttled
from store.tables import Control, utc_now

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlmodel import Session

    from daemon.runtime import Runtime

NOT_BEFORE = "not before:"
"""Control, followed by the name of a source: when it may be asked again, by whom not, and why."""


@contextmanager
def asking(runtime: Runtime, name: str) -> Iterator[None]:
    """Ask a source within a block; what it says about when to come back is kept.

    A ban is of a user agent: with another one configured, the source may be asked.

    Raises:
        TooEarly: the time has not come.
    """
    agent = runtime.settings.source.user_agent
    with runtime.database.read() as session:
        row = session.get(Control, NOT_BEFORE + name)
    rest = {} if row is None else json.loads(row.value)
    if rest and rest["user_agent"] == agent and utc_now() < datetime.fromisoformat(rest["until"]):
        raise TooEarly(f"{name} is not to be asked before {rest['until'][:19]}Z ({rest['why']}): nothing was asked")
    try:
        yield
    except (Throttled, Banned) as error:
        if error.retry_after is not None:
            _remember(runtime, name, agent, utc_now() + timedelta(seconds=error.retry_after), error)
        raise


def resting(session: Session) -> list[dict[str, str]]:
    """Sources that asked to be left alone, until when and why."""
    rows = session.exec(select(Control).where(col(Control.key).startswith(NOT_BEFORE)).order_by(col(Control.key)))
    told = [{"source": row.key.removeprefix(NOT_BEFORE)} | json.loads(row.value) for row in rows]
    return [rest for rest in told if utc_now() < datetime.fromisoformat(rest["until"])]


def _remember(runtime: Runtime, name: str, agent: str | None, until: datetime, error: SourceError) -> None:
    rest = {"until": until.isoformat(), "user_agent": agent, "why": str(error)}
    with runtime.database.transaction() as session:
        session.merge(Control(key=NOT_BEFORE + name, value=json.dumps(rest), updated_at=utc_now()))
    runtime.log.warning("source rests", source=name, until=rest["until"], why=rest["why"])
