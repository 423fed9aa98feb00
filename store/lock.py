"""One writer per state directory."""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING, Self

from store import durable
from store.errors import WriterBusy
from store.failures import disk_failures, require_directory

if TYPE_CHECKING:
    from pathlib import Path

FILE_NAME = "writer.lock"


class WriterLock:
    """Hold the state directory as its only writer for the length of a ``with`` block.

    The kernel gives the lock up when the process ends, however it ends. The file stays: deleting it would let
    two processes lock two files of the same name. A child made by ``fork`` without ``exec`` shares the lock.

    Raises:
        WriterBusy: on entry, another process (or another WriterLock of this one) holds it.
        StateUnwritable: on entry, the directory is missing or not writable.

    """

    def __init__(self, state_dir: Path) -> None:
        self.path = state_dir / FILE_NAME
        self._descriptor: int | None = None

    def __enter__(self) -> Self:
        require_directory(self.path.parent)
        with disk_failures(self.path.parent):
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, durable.FILE_MODE)
            try:
                self._acquire(descriptor)
            except BaseException:
                os.close(descriptor)
                raise
        self._descriptor = descriptor
        return self

    def __exit__(self, *_: object) -> None:
        if self._descriptor is not None:
            # Emptied first, so that nobody is told the number of a process that has let go.
            os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = None

    def _acquire(self, descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise WriterBusy(self.path, _holder(descriptor)) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)


def _holder(descriptor: int) -> int | None:
    """Read the number in the file; None in the instant before the holder has written it."""
    text = os.pread(descriptor, 32, 0).strip()
    return int(text) if text.isdigit() else None
