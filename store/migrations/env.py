"""Run by Alembic: compares or migrates the connection that the caller put into the configuration.

There is no offline mode and no URL here: ``store.schema.alembic_config`` always hands over a connection whose
transaction the caller commits, so that a killed migration leaves nothing.
"""

from __future__ import annotations

from typing import Any, Literal

from alembic import context
from sqlalchemy import Enum
from sqlmodel import AutoString, SQLModel

from store.tables import UtcDateTime


def render_item(kind: str, item: Any, _context: Any) -> str | Literal[False]:
    """Write plain column types into revisions: a revision must not change when the code's own types do."""
    if kind != "type":
        return False
    if isinstance(item, UtcDateTime):
        return "sa.DateTime(timezone=True)"
    if isinstance(item, AutoString | Enum):
        return f"sa.String(length={item.length})" if item.length else "sa.String()"
    return False


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=SQLModel.metadata,
    render_as_batch=True,  # SQLite alters most things only by rebuilding the table
    render_item=render_item,
)
with context.begin_transaction():
    context.run_migrations()
