"""What a publisher is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Release:
    """A version as publishers see it.

    Attributes:
        number: of the version.
        digest: of its artifact.
        directory: where it is in the state.
        key: names this publication of it: the same when it is tried again, another one when the version is published
            another time.
    """

    number: int
    digest: str
    directory: Path
    key: str

    @property
    def name(self) -> str:
        """The name of its directory wherever it is."""
        return self.directory.name

    @property
    def label(self) -> str:
        """A name that tells number and content."""
        return f"v{self.number}-{self.digest[:12]}"


class Publisher(Protocol):
    """Brings one target to answer with a version. A rollback is the same call with an older version."""

    def publish(self, version: Release, previous: Release | None) -> None:
        """Make the target answer with the version. Doing it again changes nothing.

        Args:
            version: what is wanted.
            previous: what the target is known to answer with, to go back to when that fails; None: not known.

        Raises:
            PublishFailed: it was not possible now.
            StateUnwritable: a disk is full or read-only.
        """

    def holds(self, version: Release) -> bool:
        """Whether the target itself says that it has the version; True where it does not tell.

        Raises:
            PublishFailed: it does not answer.
        """
