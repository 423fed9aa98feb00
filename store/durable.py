"""File operations that have happened when they return: written, flushed to the disk, and findable by name."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

FILE_MODE = 0o644
DIRECTORY_MODE = 0o755


def sync(path: Path) -> None:
    """Flush a file or a directory (its names) to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write(path: Path, content: bytes) -> None:
    """Write a file and flush it; its name is durable only once its directory is synced."""
    path.write_bytes(content)
    set_mode(path, FILE_MODE)
    sync(path)


def set_mode(path: Path, mode: int) -> None:
    """Change the mode if it differs, so that hard links to another user's files need no permission."""
    if path.stat().st_mode & 0o7777 != mode:
        path.chmod(mode)


def move(source: Path, target: Path) -> None:
    """Rename within one file system and flush both directories."""
    source.rename(target)
    sync(target.parent)
    if source.parent != target.parent:
        sync(source.parent)


def delete(path: Path) -> None:
    """Delete a file, a symbolic link or a whole directory; nothing happens if it is not there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
