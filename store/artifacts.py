"""Version directories on disk: whole or absent, and verified.

A version is prepared in ``root/.staging``, sealed with a manifest that is written last, and renamed to
``root/v{N}``. Everything that replaces or deletes goes through ``.staging`` too, so that a kill at any
instant leaves each ``v{N}`` whole; ``clean_staging`` at start-up clears up what the kill left. One writer
at a time: hold the writer lock.
"""

from __future__ import annotations

import re
import secrets
import stat
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from store import durable, manifest
from store.errors import ArtifactCorrupt, ArtifactRefused
from store.failures import disk_failures, full_disk, require_directory
from store.manifest import FileRecord, Manifest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

STAGING = ".staging"

REFUSED_SUFFIXES = frozenset({".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth", ".py", ".pyc", ".so"})
"""Pickles run code when they are loaded, and remote code is code: weights come as safetensors only."""

# What is set aside while its successor takes the name. If the successor never came, it is put back.
_REPLACED = re.compile(r"(v\d+)-[0-9a-f]+\.replaced")


class ArtifactStore:
    """The version directories under ``root``, which is made when first needed (its parent must exist)."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._staging = root / STAGING

    def path(self, version_id: int) -> Path:
        """Where the version is, or would be."""
        return self.root / f"v{version_id}"

    @contextmanager
    def stage(self, version_id: int) -> Iterator[Path]:
        """Give an empty directory to prepare a version in; whatever was not sealed is deleted at the end.

        Raises:
            StateUnwritable: the parent of ``root`` is missing, or the disk is full or read-only
                (also when the caller's own writing failed for that reason).

        """
        require_directory(self.root.parent)
        staging = self._aside(version_id, "")
        with disk_failures(self.root):
            self._make_root()
            staging.mkdir()
        try:
            with full_disk(self.root):
                yield staging
        finally:
            # What cannot be deleted now must not hide why; clean_staging will find it.
            with suppress(OSError):
                durable.delete(staging)

    def seal(
        self, staging: Path, version_id: int, extra: dict[str, Any], known: Mapping[str, str] | None = None
    ) -> str:
        """Turn a staged directory into the version, durably and in one step, and return its digest.

        If the version is there already with the same content (a phase resumed after a kill), it stays as it
        is; one with other content, or damaged, is replaced.

        Args:
            staging: the directory that ``stage`` gave.
            version_id: the version it becomes.
            extra: metadata for the manifest; JSON, not part of the digest.
            known: SHA-256 by file name of files that are hard links to verified ones, so that they are not
                read again. For a file that turns out to be a copy it is checked, not believed.

        Raises:
            ArtifactRefused: the directory is empty, or holds pickles, code or anything but plain files.
            ArtifactCorrupt: a copied file is not what ``known`` says.
            StateUnwritable: the disk is full, read-only or failing.
            ValueError: ``staging`` is not from ``stage``, ``known`` names a file that is not there, or
                ``extra`` is not JSON.

        """
        if staging.parent != self._staging:
            raise ValueError(f"{staging} was not given by stage()")
        with disk_failures(self.root):
            names = _sealable(staging)
            if missing := sorted((known or {}).keys() - set(names)):
                raise ValueError(f"known digest of {missing[0]}, which is not in {staging}")
            files = {name: _record(staging, version_id, name, (known or {}).get(name)) for name in names}
            sealed = Manifest(version_id, files, extra)
            encoded = sealed.encode()
            _sync_tree(staging, names)
            durable.write(staging / manifest.FILE_NAME, encoded)
            durable.sync(staging)
            self._install(staging, sealed)
        return sealed.digest

    def manifest(self, version_id: int) -> Manifest:
        """Read the version's manifest, checked in itself but not against the files.

        Raises:
            ArtifactCorrupt: there is none, or it is damaged.
            StateUnwritable: it cannot be read.

        """
        with disk_failures(self.root):
            return Manifest.load(self.path(version_id), version_id)

    def verify(self, version_id: int, digest: str | None = None) -> None:
        """Read every byte of the version and compare it with the manifest, and the manifest with ``digest``.

        Raises:
            ArtifactCorrupt: names the first file that is missing, foreign, of another size or content.
            StateUnwritable: the disk fails.

        """
        with disk_failures(self.root):
            directory = self.path(version_id)
            promised = Manifest.load(directory, version_id)
            if digest is not None and promised.digest != digest:
                raise ArtifactCorrupt(version_id, manifest.FILE_NAME, digest, promised.digest)
            present = {path.relative_to(directory).as_posix(): path for path in _entries(directory)}
            del present[manifest.FILE_NAME]
            for name in sorted(promised.files.keys() | present.keys()):
                _check(version_id, name, promised.files.get(name), present.get(name))

    def remove(self, version_id: int) -> None:
        """Delete the version; it is gone in one step, and doing it again is harmless.

        Raises:
            StateUnwritable: the disk is read-only or failing.

        """
        directory = self.path(version_id)
        with disk_failures(self.root):
            if not directory.exists():
                return
            self._make_root()
            doomed = self._aside(version_id, ".removed")
            durable.move(directory, doomed)
            durable.delete(doomed)

    def clean_staging(self) -> list[str]:
        """Clear up what killed runs left, putting back a version whose replacement never came.

        Returns:
            The names that were found, for the log.

        Raises:
            StateUnwritable: the disk is read-only or failing.

        """
        if not self._staging.is_dir():
            return []
        with disk_failures(self.root):
            leftovers = sorted(self._staging.iterdir())
            for leftover in leftovers:
                replaced = _REPLACED.fullmatch(leftover.name)
                if replaced and not (self.root / replaced[1]).exists():
                    durable.move(leftover, self.root / replaced[1])
                else:
                    durable.delete(leftover)
        return [leftover.name for leftover in leftovers]

    def _make_root(self) -> None:
        if not self.root.exists():
            self.root.mkdir()
            # Whatever the umask: a serving engine of another user must get through to the versions.
            durable.set_mode(self.root, durable.DIRECTORY_MODE)
        durable.sync(self.root.parent)
        self._staging.mkdir(exist_ok=True)

    def _aside(self, version_id: int, suffix: str) -> Path:
        return self._staging / f"v{version_id}-{secrets.token_hex(4)}{suffix}"

    def _install(self, staging: Path, sealed: Manifest) -> None:
        final = self.path(sealed.version_id)
        if not final.exists():
            durable.move(staging, final)
            return
        try:
            self.verify(sealed.version_id, sealed.digest)
        except ArtifactCorrupt:
            former = self._aside(sealed.version_id, ".replaced")
            durable.move(final, former)
            durable.move(staging, final)
            durable.delete(former)
        else:
            # The kill may have come between the rename and the sync of the directory.
            durable.sync(self.root)
            durable.delete(staging)


def _entries(directory: Path) -> list[Path]:
    """List all that is not a directory, at any depth, sorted."""
    return sorted(path for path in directory.rglob("*") if path.is_symlink() or not path.is_dir())


def _sealable(staging: Path) -> list[str]:
    """List the names of the staged files, without an earlier manifest."""
    names = []
    for path in _entries(staging):
        name = path.relative_to(staging).as_posix()
        if not stat.S_ISREG(path.lstat().st_mode):
            raise ArtifactRefused(f"{name} is not a plain file: copy or hard-link its content instead")
        if path.suffix.lower() in REFUSED_SUFFIXES:
            raise ArtifactRefused(f"{name} can run code when loaded: save weights as safetensors, without it")
        if name != manifest.FILE_NAME:
            names.append(name)
    if not names:
        raise ArtifactRefused(f"{staging} is empty: save the model before sealing")
    return names


def _record(staging: Path, version_id: int, name: str, known: str | None) -> FileRecord:
    path = staging / name
    status = path.stat()
    if known is not None and status.st_nlink > 1:
        return FileRecord(status.st_size, known)
    found = manifest.hash_file(path)
    if known is not None and found != known:
        raise ArtifactCorrupt(version_id, name, known, found)
    return FileRecord(status.st_size, found)


def _sync_tree(staging: Path, names: list[str]) -> None:
    for name in names:
        durable.set_mode(staging / name, durable.FILE_MODE)
        durable.sync(staging / name)
    for directory in [path for path in staging.rglob("*") if path.is_dir()] + [staging]:
        durable.set_mode(directory, durable.DIRECTORY_MODE)
        durable.sync(directory)


def _check(version_id: int, name: str, promised: FileRecord | None, path: Path | None) -> None:
    if promised is None:
        raise ArtifactCorrupt(version_id, name, "no such file", "one")
    if path is None:
        raise ArtifactCorrupt(version_id, name, promised.sha256, "no such file")
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise ArtifactCorrupt(version_id, name, promised.sha256, "something that is not a plain file")
    if status.st_size != promised.size:
        raise ArtifactCorrupt(version_id, name, f"{promised.size} bytes", f"{status.st_size} bytes")
    found = manifest.hash_file(path)
    if found != promised.sha256:
        raise ArtifactCorrupt(version_id, name, promised.sha256, found)
