"""How the store speaks to SQLite: what is set on every connection and how each kind of transaction begins."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any

from sqlalchemy import event

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

BUSY_TIMEOUT_MS = 30_000
"""How long a transaction waits for another process's before it gives up."""

ACCESS = "factsyncd_access"
"""The engine option that names the access of its transactions."""


class Access(StrEnum):
    """What a transaction is for."""

    READ = "read"
    WRITE = "write"
    MIGRATE = "migrate"


# IMMEDIATE takes the write lock at once. A deferred transaction that reads first and writes later can find
# that another one wrote in between, and fails at once instead of waiting.
# A migration may rebuild a table by dropping it, which enforced foreign keys would forbid.
_BEGIN = {
    Access.READ: ("PRAGMA query_only = ON", "BEGIN"),
    Access.WRITE: ("PRAGMA query_only = OFF", "PRAGMA foreign_keys = ON", "BEGIN IMMEDIATE"),
    Access.MIGRATE: (
        "PRAGMA query_only = OFF",
        "PRAGMA foreign_keys = OFF",
        "PRAGMA journal_mode = WAL",
        "BEGIN IMMEDIATE",
    ),
}


def prepare(engine: Engine) -> None:
    """Make every connection of ``engine`` durable and every transaction explicit."""
    event.listen(engine, "connect", _on_connect)
    event.listen(engine, "begin", _on_begin)


def _on_connect(connection: Any, _record: object) -> None:
    # Python's driver must not begin transactions of its own: _on_begin does it, and nothing else.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.close()


def _on_begin(connection: Connection) -> None:
    for statement in _BEGIN[connection.get_execution_options()[ACCESS]]:
        connection.exec_driver_sql(statement)
