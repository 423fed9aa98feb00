"""A directory target: whole version directories, and a link that is swapped in one step."""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING

from daemon.errors import PublishFailed
from store import ArtifactCorrupt, ArtifactStore, StoreError, link_or_copy, point_current

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from daemon.publishers.base import Release

_VERSION = re.compile(r"v(\d+)")


class DirectoryPublisher:
    """Publishes by a link, to the state's own version directories or to copies elsewhere.

    Args:
        state: the version directories of the state.
        link: the link to swap.
        copies: where copies are kept, made if missing; None: the link leads into the state.
        needed: numbers of versions whose copies stay.
    """

    def __init__(self, state: ArtifactStore, link: Path, copies: Path | None, needed: set[int]) -> None:
        self._state, self._link, self._needed = state, link, needed
        self._copies = None if copies is None else ArtifactStore(copies)

    def publish(self, version: Release, previous: Release | None) -> None:
        """Copy the version where copies are kept, swap the link, and remove copies that are not needed any more."""
        with _failures():
            if self._copies is None:
                point_current(self._link, version.directory)
                return
            self._copies.root.parent.mkdir(parents=True, exist_ok=True)
            self._copies.clean_staging()
            self._copy(self._copies, version)
            point_current(self._link, self._copies.path(version.number))
            self._prune(self._copies, version.number)

    def holds(self, version: Release) -> bool:
        """Whether the link leads to the version's directory."""
        wanted = version.directory if self._copies is None else self._copies.path(version.number)
        return self._link.is_symlink() and self._link.exists() and self._link.resolve() == wanted.resolve()

    def _copy(self, copies: ArtifactStore, version: Release) -> None:
        """The version's directory among the copies; files that are there already are linked, not copied again."""
        if _is_sealed(copies, version):
            return
        known = {name: file.sha256 for name, file in self._state.manifest(version.number).files.items()}
        there = _by_content(copies)
        with copies.stage(version.number) as staging:
            for name, content in known.items():
                (staging / name).parent.mkdir(parents=True, exist_ok=True)
                link_or_copy(there.get(content, version.directory / name), staging / name)
            copies.seal(staging, version.number, self._state.manifest(version.number).extra, known)

    def _prune(self, copies: ArtifactStore, present: int) -> None:
        for number in _numbers(copies) - self._needed - {present}:
            copies.remove(number)


@contextmanager
def _failures() -> Iterator[None]:
    try:
        yield
    except (StoreError, OSError) as error:
        raise PublishFailed(" ".join(str(error).split())) from error


def _numbers(store: ArtifactStore) -> set[int]:
    """The versions that are there, told by our own names."""
    matches = (_VERSION.fullmatch(path.name) for path in store.root.iterdir())
    return {int(match[1]) for match in matches if match}


def _is_sealed(copies: ArtifactStore, version: Release) -> bool:
    """Whether the copy is there and whole: every byte of it is read."""
    if not copies.path(version.number).is_dir():
        return False
    try:
        copies.verify(version.number, version.digest)
    except ArtifactCorrupt:
        return False
    return True


def _by_content(copies: ArtifactStore) -> dict[str, Path]:
    """Files of the copies by SHA-256."""
    if not copies.root.is_dir():
        return {}
    files: dict[str, Path] = {}
    for number in sorted(_numbers(copies)):
        try:
            manifest = copies.manifest(number)
        except ArtifactCorrupt:
            continue
        files |= {file.sha256: copies.path(number) / name for name, file in manifest.files.items()}
    return {content: path for content, path in files.items() if path.is_file()}
