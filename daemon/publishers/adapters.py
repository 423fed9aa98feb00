"""Adapters of versions, made once and kept: what a vLLM server with an adapter is given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from daemon.errors import PublishFailed
from editor import AdapterImpossible, write_peft_adapter
from store import ArtifactCorrupt, ArtifactStore, StoreError

if TYPE_CHECKING:
    from daemon.publishers.base import Release


@dataclass(frozen=True)
class Adapter:
    """An adapter and what it is loaded on.

    Attributes:
        directory: of the adapter.
        route: the end of that path, which is the same wherever the directory of adapters is mounted.
        below: the version whose weights the engine must have: the base, or the version itself, for which the adapter
            is empty.
        on_full_weights: whether it is the version itself.
    """

    directory: Path
    route: Path
    below: Release
    on_full_weights: bool


class Adapters:
    """The adapters for one target.

    Args:
        root: where they are kept.
        target: the target's name.
        base: version 0.
        max_rank: the highest rank that the engine takes.
    """

    def __init__(self, root: Path, target: str, base: Release, max_rank: int) -> None:
        # A path stands for one content for ever: the engine's prefix cache goes by name and path.
        self._rank = Path(f"rank-{max_rank}")
        self._root, self._base, self._max_rank = root, base, max_rank
        self._store = ArtifactStore(root / self._rank)
        self._mark = root / f"{target}.full-weights"

    def of(self, version: Release) -> Adapter:
        """The adapter that makes an engine answer with the version.

        Raises:
            PublishFailed: it cannot be made or written.
        """
        try:
            full = self._is_full(version)
        except (StoreError, OSError) as error:
            raise PublishFailed(" ".join(str(error).split())) from error
        directory = self._store.path(version.number)
        return Adapter(directory, self._rank / directory.name, version if full else self._base, full)

    @property
    def may_have_full_weights(self) -> bool:
        """Whether the engine may have other weights than the base's below the adapter."""
        return self._mark.exists()

    def note_full_weights(self) -> None:
        """Remember that the engine is about to get other weights; outlives a kill."""
        self._mark.touch()

    def forget_full_weights(self) -> None:
        """The engine has the base's weights again."""
        self._mark.unlink(missing_ok=True)

    def _is_full(self, version: Release) -> bool:
        self._root.mkdir(parents=True, exist_ok=True)
        try:
            self._store.verify(version.number)
            made = self._store.manifest(version.number).extra
            if made["of"] == version.digest:
                return bool(made["full"])
        except ArtifactCorrupt:
            pass  # there is none, or it is damaged: it is made anew
        with self._store.stage(version.number) as staging:
            full = self._write(version, staging)
            self._store.seal(staging, version.number, {"of": version.digest, "full": full})
        return full

    def _write(self, version: Release, staging: Path) -> bool:
        try:
            write_peft_adapter(self._base.directory, version.directory, staging, self._max_rank)
        except AdapterImpossible:
            # An adapter of the version to itself changes nothing.
            write_peft_adapter(version.directory, version.directory, staging, self._max_rank)
            return True
        return False
