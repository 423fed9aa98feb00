"""What can go wrong with what must survive, as one tree.

::

    StoreError
    ├── StateUnwritable        the state directory is missing, read-only or full
    ├── DatabaseUnavailable    the database is absent, unreachable, locked, damaged or of another release
    ├── WriterBusy             another process is the writer
    ├── UnknownVersion         no such version is recorded
    ├── WrongState             the version is in a state that does not allow the move
    ├── ArtifactRefused        a staged directory holds something that may not become an artifact
    └── ArtifactCorrupt        an artifact on disk is not what its manifest says

Every message is one line and ends with what to do next.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class StoreError(Exception):
    """Anything the store raises on purpose."""


class StateUnwritable(StoreError):
    """The state directory is missing, read-only or full."""


class DatabaseUnavailable(StoreError):
    """The database is absent, unreachable, locked, damaged or of another release."""


class WriterBusy(StoreError):
    """Another process holds the writer lock.

    Attributes:
        pid: the holder, or None if it has not written its number yet.

    """

    def __init__(self, lock: Path, pid: int | None) -> None:
        self.pid = pid
        holder = f"process {pid}" if pid is not None else "another process"
        super().__init__(f"{holder} holds {lock}: wait for it, stop it, or use a read-only command")


class UnknownVersion(StoreError):
    """No such version is recorded.

    Attributes:
        version_id: the number that was asked for.

    """

    def __init__(self, version_id: int) -> None:
        self.version_id = version_id
        super().__init__(f"there is no version {version_id}: `factsyncd versions` lists those there are")


class WrongState(StoreError):
    """The version is in a state that does not allow the move."""


class ArtifactRefused(StoreError):
    """A staged directory holds something that may not become an artifact."""


class ArtifactCorrupt(StoreError):
    """An artifact on disk is not what its manifest, or the database, says.

    Attributes:
        version_id: the version that is damaged.
        file: the first file found wrong, relative to the version's directory.
        expected: what was promised (a SHA-256, a size, or words).
        found: what is there.

    """

    def __init__(self, version_id: int, file: str, expected: str, found: str) -> None:
        self.version_id = version_id
        self.file = file
        self.expected = expected
        self.found = found
        super().__init__(
            f"version {version_id} is corrupt: {file}: expected {expected}, found {found}: "
            "roll back to another version, or restore it from a backup"
        )
