"""The database schema, brought to this release by Alembic from the scripts in the package."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from alembic import command
from alembic.config import Config
from alembic.util import CommandError

from store.errors import DatabaseUnavailable

if TYPE_CHECKING:
    from sqlalchemy import Connection

SCRIPTS = Path(__file__).parent / "migrations"


def alembic_config(connection: Connection | None = None) -> Config:
    """Point Alembic at the packaged scripts and at ``connection``; no ini file is read.

    ``store/migrations/__init__.py`` shows how a developer writes the next revision with it.
    """
    config = Config()
    # Config values are interpolated: a percent sign in the installation path must be doubled.
    config.set_main_option("script_location", str(SCRIPTS).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Bring the schema up to ``revision`` within the connection's transaction.

    Raises:
        DatabaseUnavailable: the schema is of a newer release, or a migration left dangling references.

    """
    try:
        command.upgrade(alembic_config(connection), revision)
    except CommandError as error:
        raise DatabaseUnavailable(
            f"the database does not fit this release ({error}): upgrade factsyncd, or restore a backup"
        ) from error
    _check_references(connection)


def downgrade(connection: Connection, revision: str) -> None:
    """Take the schema back to ``revision`` (``base``: to nothing) within the connection's transaction."""
    command.downgrade(alembic_config(connection), revision)
    _check_references(connection)


def _check_references(connection: Connection) -> None:
    # SQLite migrates with foreign keys off, so what they would have refused is looked for here.
    if connection.dialect.name != "sqlite":
        return
    dangling = connection.exec_driver_sql("PRAGMA foreign_key_check").first()
    if dangling is not None:
        raise DatabaseUnavailable(
            f"the migration would leave row {dangling[1]} of {dangling[0]} without its {dangling[2]} row; "
            "nothing was changed: report it, and stay on the former release"
        )
