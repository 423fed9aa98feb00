"""The database: one transaction per phase, whole or not at all.

SQLite is the embedded default; any other database that SQLAlchemy speaks works by its URL.
"""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Self

from sqlalchemy import create_engine
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError
from sqlmodel import Session

from store import schema, sqlite
from store.errors import DatabaseUnavailable
from store.failures import NO_STATE, database_failures, require_directory
from store.sqlite import ACCESS, Access

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection, Engine


class Database:
    """Sessions on one database. Make it with ``open_database``; close it, or use it as a context manager.

    Sessions are for one thread; the Database may be shared by several. Do not nest ``transaction()`` in one
    thread: the inner one would wait for the outer one until it times out.
    """

    def __init__(self, engine: Engine, where: str, file: Path | None) -> None:
        self.where = where
        self._engine = engine
        self._file = file
        self._reader = engine.execution_options(**{ACCESS: Access.READ, "postgresql_readonly": True})
        self._writer = engine.execution_options(**{ACCESS: Access.WRITE})
        self._migrator = engine.execution_options(**{ACCESS: Access.MIGRATE})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """Give a session whose work is committed once, at the end, or rolled back whole on any exception.

        Objects stay usable after the end. Calling ``session.commit()`` inside is an error.

        Raises:
            StateUnwritable: the database is read-only or its disk is full.
            DatabaseUnavailable: there is no database yet, or it is locked, damaged or unreachable.

        """
        self._require_state()
        with (
            database_failures(self.where),
            Session(self._writer, expire_on_commit=False) as session,
            session.begin(),
        ):
            yield session

    @contextmanager
    def read(self) -> Iterator[Session]:
        """Give a session that sees one consistent state and cannot write; objects stay usable after the end.

        Raises:
            StateUnwritable: the database file cannot be opened.
            DatabaseUnavailable: there is no database yet, or it is damaged or unreachable.
            RuntimeError: something was changed in the session, which is a mistake in the caller.

        """
        self._require_state()
        with database_failures(self.where, reading=True), Session(self._reader) as session:
            yield session
            if session.new or session.dirty or session.deleted:
                raise RuntimeError("changes made in read() would be lost: make them in transaction()")

    def migrate(self) -> None:
        """Bring the schema to this release, making the database if there is none. All or nothing.

        Raises:
            StateUnwritable: the directory is missing, read-only or full.
            DatabaseUnavailable: the database is of a newer release, locked, damaged or unreachable.

        """
        with self.migrating() as connection:
            schema.upgrade(connection)

    @contextmanager
    def migrating(self) -> Iterator[Connection]:
        """Give a connection in a transaction that may change the schema (foreign keys are not enforced).

        Raises:
            StateUnwritable: the directory is missing, read-only or full.
            DatabaseUnavailable: the database is locked, damaged or unreachable.

        """
        if self._file is not None:
            require_directory(self._file.parent)
        with database_failures(self.where), self._migrator.begin() as connection:
            yield connection

    def _require_state(self) -> None:
        # Asked before connecting, because SQLite would leave an empty file behind.
        if self._file is not None and not self._file.exists():
            raise DatabaseUnavailable(f"{self.where}: {NO_STATE}")


def open_database(url_or_path: str | Path) -> Database:
    """Open the database at a path (SQLite) or an SQLAlchemy URL; nothing is read or written yet.

    Raises:
        DatabaseUnavailable: the URL is malformed, has no file, or its driver is not installed.

    """
    if isinstance(url_or_path, Path) or "://" not in url_or_path:
        url = make_url("sqlite://").set(database=str(url_or_path))
    else:
        try:
            url = make_url(url_or_path)
        except (ArgumentError, ValueError) as error:
            raise DatabaseUnavailable(f"the database URL is malformed: {error}") from error
    embedded = url.get_backend_name() == "sqlite"
    if embedded and url.database in (None, "", ":memory:"):
        raise DatabaseUnavailable(f"{url} would be forgotten: give the database a file")
    # Absolute, so that a later change of the working directory does not change the database.
    file = Path(url.database or "").absolute() if embedded else None
    if file is not None:
        url = url.set(database=str(file))
    try:
        engine = create_engine(url, pool_pre_ping=not embedded)
    except (NoSuchModuleError, ModuleNotFoundError) as error:
        raise DatabaseUnavailable(f"no driver for {url.drivername} ({error}): install it") from error
    if file is not None:
        sqlite.prepare(engine)
    where = str(file) if file is not None else url.render_as_string(hide_password=True)
    return Database(engine, where, file)
