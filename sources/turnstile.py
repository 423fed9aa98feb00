"""One request at a time per host, over all threads and processes that share a directory."""

from __future__ import annotations

import re
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from sources.errors import SourceDown, SourceError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path


class Turnstile:
    """Lets one through at a time.

    Args:
        host: whom to ask.
        directory: holds a lock file per host, made if missing. The kernel gives a lock back when its process dies.
            None: only requests through this object take turns.
        patience: seconds to wait for a turn. Every holder is bounded by its own deadline, so a turn comes.

    """

    def __init__(self, host: str, directory: Path | None, patience: float) -> None:
        self._host = host
        self._patience = patience
        self._thread_lock = threading.Lock()
        self._file = None if directory is None else directory / f"{re.sub('[^a-z0-9.-]', '_', host.lower())}.lock"

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for a turn and hold it within the block.

        Raises:
            SourceDown: none came.
            SourceError: the lock file cannot be used.

        """
        if not self._thread_lock.acquire(timeout=self._patience):
            raise SourceDown(self._no_turn())
        try:
            with self._held_by_file():
                yield
        finally:
            self._thread_lock.release()

    @contextmanager
    def _held_by_file(self) -> Iterator[None]:
        if self._file is None:
            yield
            return
        with self._locked(self._file):
            yield

    def _locked(self, file: Path) -> AbstractContextManager[object]:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            # No lock by mere existence of the file where the system has no other: it would outlive a kill.
            return FileLock(file, fallback_to_soft=False).acquire(timeout=self._patience)
        except Timeout as error:
            raise SourceDown(self._no_turn()) from error
        except (OSError, NotImplementedError) as error:
            raise SourceError(f"{file} cannot be locked ({error}): make its directory writable") from error

    def _no_turn(self) -> str:
        return f"{self._host} was asked by others for {self._patience:g} s without a turn for us: run fewer at a time"
