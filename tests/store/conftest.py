"""Real files, real SQLite, a real small disk and a real unprivileged user for the store's tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from store import ArtifactStore, Database, open_database

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CHILDREN = Path(__file__).parent / "children"
REPOSITORY = Path(__file__).parents[2]
NOBODY = 65534

# Where hundreds of generated examples are tried: in memory, if the machine has such a place.
FAST_DISK = "/dev/shm" if Path("/dev/shm").is_dir() else None


@pytest.fixture
def now() -> datetime:
    return datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database file fresh from the migrations, to be copied."""
    file = tmp_path_factory.mktemp("template") / "state.db"
    with open_database(file) as database:
        database.migrate()
    return file


@pytest.fixture
def database(tmp_path: Path, migrated_file: Path) -> Iterator[Database]:
    shutil.copyfile(migrated_file, tmp_path / "state.db")
    with open_database(tmp_path / "state.db") as opened:
        yield opened


@pytest.fixture
def artifacts(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "versions")


@pytest.fixture
def start_child() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a script of ``children/`` in its own process; whatever still runs at the end is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(script: str, *arguments: object) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, CHILDREN / script, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A mounted file system of 1 MiB."""
    mount = tmp_path / "small"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=755", "tmpfs", str(mount)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a tmpfs is not allowed here; the patched ENOSPC tests still run")
    yield mount
    subprocess.run(["umount", "--lazy", str(mount)], check=True)


@pytest.fixture
def public_directory() -> Iterator[Path]:
    """A directory that every user may enter (pytest's own are private)."""
    path = Path(tempfile.mkdtemp(prefix="factsyncd-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def unprivileged() -> Callable[[], AbstractContextManager[None]]:
    """Runs a block with the kernel's permission checks in force: as nobody, if the tests run as root."""

    @contextmanager
    def as_nobody() -> Iterator[None]:
        if os.geteuid() != 0:
            yield
            return
        os.setegid(NOBODY)
        os.seteuid(NOBODY)
        try:
            yield
        finally:
            os.seteuid(0)
            os.setegid(0)

    return as_nobody
