"""The manifest of a version directory: what should be in it, as canonical JSON that proves itself.

::

    {"digest": D, "extra": {...}, "files": {"model.safetensors": {"sha256": H, "size": N}, ...},
     "format": 1, "seal": S, "version": 7}

``digest`` names the content: the SHA-256 of the canonical JSON of ``{file: sha256}``, and of nothing else.
``seal`` is the SHA-256 of the canonical manifest without ``seal``, so that damage to ``extra`` shows too.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from store.errors import ArtifactCorrupt

if TYPE_CHECKING:
    from pathlib import Path

FILE_NAME = "MANIFEST.json"
FORMAT = 1


@dataclass(frozen=True, slots=True)
class FileRecord:
    """One file: its size in bytes and its SHA-256 in hexadecimal."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a version directory holds. File names are relative, with ``/``."""

    version_id: int
    files: dict[str, FileRecord]
    extra: dict[str, Any]

    @property
    def digest(self) -> str:
        """The artifact digest: depends on file names and contents only, not on time or ``extra``."""
        return _sha256({name: record.sha256 for name, record in self.files.items()})

    def encode(self) -> bytes:
        """Write the manifest as canonical JSON.

        Raises:
            TypeError, ValueError: ``extra`` holds what JSON cannot express, such as NaN.

        """
        body = {
            "digest": self.digest,
            "extra": self.extra,
            "files": {name: {"sha256": f.sha256, "size": f.size} for name, f in self.files.items()},
            "format": FORMAT,
            "version": self.version_id,
        }
        return _canonical(body | {"seal": _sha256(body)}) + b"\n"

    @classmethod
    def load(cls, directory: Path, version_id: int) -> Manifest:
        """Read and check the manifest in ``directory``.

        Raises:
            ArtifactCorrupt: it is missing, damaged, or another version's.
            OSError: it cannot be read.

        """
        try:
            raw = (directory / FILE_NAME).read_bytes()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ArtifactCorrupt(version_id, FILE_NAME, f"a manifest in {directory}", "none") from error
        try:
            body = json.loads(raw)
            files = {name: FileRecord(f["size"], f["sha256"]) for name, f in body["files"].items()}
            manifest = cls(body["version"], files, body["extra"])
            # Writing it again must give the same bytes: that covers the seal and every byte besides.
            intact = manifest.encode() == raw
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ArtifactCorrupt(version_id, FILE_NAME, "a sealed manifest", "damaged JSON") from error
        if not intact:
            raise ArtifactCorrupt(version_id, FILE_NAME, "a sealed manifest", "one changed after sealing")
        if manifest.version_id != version_id:
            raise ArtifactCorrupt(version_id, FILE_NAME, f"version {version_id}", f"version {manifest.version_id}")
        return manifest


def hash_file(path: Path) -> str:
    """Compute the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _canonical(value: object) -> bytes:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def _sha256(value: object) -> str:
    return hashlib.sha256(_canonical(value)).hexdigest()
