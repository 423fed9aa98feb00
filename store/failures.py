"""Failures of disk and database, put into words an operator can act on."""

from __future__ import annotations

import errno
import os
import re
import sqlite3
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from store.errors import DatabaseUnavailable, StateUnwritable, StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NO_STATE = "no state here yet: run `factsyncd once` first"

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_DISK = _FULL | {errno.EROFS, errno.EIO}
_DENIED = frozenset({errno.EACCES, errno.EPERM})

# SQLSTATE classes of PostgreSQL: undefined table or schema, undefined column, disk full, read-only.
_PG_NO_TABLE = frozenset({"42P01", "3F000"})
_PG_NO_COLUMN = frozenset({"42703"})
_PG_FULL = frozenset({"53100"})
_PG_READ_ONLY = frozenset({"25006"})


def disk_failure(error: OSError, path: Path) -> StateUnwritable:
    """Say what went wrong under ``path`` and what to do."""
    if error.errno in _FULL:
        return StateUnwritable(f"no space left under {path}: free some, or move the state to a larger disk")
    if error.errno == errno.EROFS:
        return StateUnwritable(f"{path} is on a read-only file system: remount it, or move the state")
    if error.errno in _DENIED:
        return StateUnwritable(f"user {os.geteuid()} may not write under {path}: change its owner or mode")
    return StateUnwritable(f"{path}: {error.strerror or error}: check the disk and the kernel log")


def require_directory(path: Path) -> None:
    """Refuse to go on without the directory in which something is to be made.

    Raises:
        StateUnwritable: it is not there.

    """
    if not path.is_dir():
        raise StateUnwritable(f"{path} does not exist: create it, or set another state directory")


@contextmanager
def disk_failures(path: Path) -> Iterator[None]:
    """Turn every OSError of our own file operations under ``path`` into StateUnwritable.

    Raises:
        StateUnwritable: an operation failed.

    """
    try:
        yield
    except OSError as error:
        raise disk_failure(error, path) from error


@contextmanager
def full_disk(path: Path) -> Iterator[None]:
    """Turn only what can be the disk's fault into StateUnwritable, around code that is not ours.

    Raises:
        StateUnwritable: the disk under ``path`` is full, read-only or failing.

    """
    try:
        yield
    except StoreError:
        raise
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else _rust_errno(error)
        if number not in _DISK:
            raise
        raise disk_failure(OSError(number, os.strerror(number)), path) from error


def _rust_errno(error: Exception) -> int:
    # safetensors raises an error of its own, with the number only in the words that Rust gives it.
    written = re.search(r"\(os error (\d+)\)", str(error))
    return int(written[1]) if written else 0


@contextmanager
def database_failures(where: str, *, reading: bool = False) -> Iterator[None]:
    """Turn operational failures of the database ``where`` into StoreErrors; let the rest (bugs) through.

    Raises:
        StateUnwritable: the database cannot be written (read-only, full, no permission).
        DatabaseUnavailable: it is absent, locked, damaged, unreachable or of another release.

    """
    try:
        yield
    except PoolTimeoutError as error:
        raise DatabaseUnavailable(f"no free connection to {where}: close what holds them") from error
    except DBAPIError as error:
        if isinstance(error.orig, sqlite3.Error):
            explained = _sqlite_failure(error.orig, where, reading=reading)
        else:
            explained = _server_failure(error, where, reading=reading)
        if explained is None:
            raise
        raise explained from error


def _sqlite_failure(error: sqlite3.Error, where: str, *, reading: bool) -> StoreError | None:
    # The low byte is the primary result code; the rest only refines it.
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    text = str(error)
    match code:
        case sqlite3.SQLITE_READONLY if not reading:
            return StateUnwritable(f"{where} is read-only: change its owner or mode, or remount its disk")
        case sqlite3.SQLITE_FULL:
            return StateUnwritable(f"no space left for {where}: free some, or move the state to a larger disk")
        case sqlite3.SQLITE_IOERR:
            return StateUnwritable(f"{where}: {text}: check the disk (full?) and the kernel log")
        case sqlite3.SQLITE_CANTOPEN:
            return StateUnwritable(
                f"cannot open {where}: user {os.geteuid()} must be able to write it and its directory"
            )
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return DatabaseUnavailable(f"{where} stayed locked by another process: try again when it is done")
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return DatabaseUnavailable(f"{where} is damaged ({text}): restore it from a backup")
        case _ if "no such table" in text:
            return DatabaseUnavailable(f"{where}: {NO_STATE}")
        case _ if "no such column" in text or "has no column" in text:
            return _other_release(where)
        case _:
            return None


def _server_failure(error: DBAPIError, where: str, *, reading: bool) -> StoreError | None:
    state = getattr(error.orig, "sqlstate", None) or getattr(error.orig, "pgcode", None)
    if state in _PG_NO_TABLE:
        return DatabaseUnavailable(f"{where}: {NO_STATE}")
    if state in _PG_NO_COLUMN:
        return _other_release(where)
    if state in _PG_FULL:
        return StateUnwritable(f"no space left for {where}: free some on the database server")
    if state in _PG_READ_ONLY and not reading:
        return StateUnwritable(f"{where} is read-only: connect to the primary")
    if error.connection_invalidated or state is None or state.startswith(("08", "28", "57P")):
        reason = " ".join(str(error.orig).split())
        return DatabaseUnavailable(f"cannot reach {where}: {reason}: check the server and the URL")
    return None


def _other_release(where: str) -> DatabaseUnavailable:
    return DatabaseUnavailable(
        f"{where} is of another release: restart the service so that it migrates, or upgrade factsyncd"
    )
