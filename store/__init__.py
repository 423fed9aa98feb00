"""What must survive: tables, migrations, version artifacts on disk, and the writer lock.

The rows are in ``store.tables``, the questions about them in ``store.ledger``.
"""

from store.artifacts import ArtifactStore
from store.database import Database, open_database
from store.errors import (
    ArtifactCorrupt,
    ArtifactRefused,
    DatabaseUnavailable,
    StateUnwritable,
    StoreError,
    UnknownVersion,
    WriterBusy,
    WrongState,
)
from store.links import link_or_copy, point_current
from store.lock import WriterLock
from store.manifest import FileRecord, Manifest

__all__ = [
    "ArtifactCorrupt",
    "ArtifactRefused",
    "ArtifactStore",
    "Database",
    "DatabaseUnavailable",
    "FileRecord",
    "Manifest",
    "StateUnwritable",
    "StoreError",
    "UnknownVersion",
    "WriterBusy",
    "WriterLock",
    "WrongState",
    "link_or_copy",
    "open_database",
    "point_current",
]
