"""Progress of long work, and the way to stop it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called between steps of long work.

    It may raise :class:`editor.errors.Interrupted`; the work then stops at once, keeping what is cached.
    """

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Report that ``done`` of ``total`` units of ``stage`` are finished."""


def silent(stage: str, done: int, total: int) -> None:
    """Ignore the report."""
