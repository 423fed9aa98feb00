"""Full and read-only disks: mounted or denied for real where the tests may, patched elsewhere."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import numpy as np
import pytest
from safetensors.numpy import save_file
from sqlmodel import select

from store import (
    ArtifactStore,
    StateUnwritable,
    WriterLock,
    open_database,
    point_current,
)
from store.tables import Control

if TYPE_CHECKING:
    from pathlib import Path

Unprivileged = Callable[[], AbstractContextManager[None]]


def fill(directory: Path) -> None:
    with pytest.raises(OSError, match="No space"), (directory / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def test_a_full_disk_leaves_the_database_as_it_was(small_disk: Path) -> None:
    with open_database(small_disk / "state.db") as database:
        database.migrate()
        with database.transaction() as session:
            session.add(Control(key="before", value="x"))
        with pytest.raises(StateUnwritable, match=r"free some|full"), database.transaction() as session:
            session.add_all([Control(key=str(number), value="x" * 4000) for number in range(400)])
        with database.read() as session:
            assert session.exec(select(Control.key)).all() == ["before"]
        with database.transaction() as session:  # what fits is written again
            session.add(Control(key="after", value="x"))


def test_a_full_disk_refuses_a_new_database_and_lock(small_disk: Path) -> None:
    fill(small_disk)
    database = open_database(small_disk / "state.db")
    with database, pytest.raises(StateUnwritable, match=r"free some|full"):
        database.migrate()
    with pytest.raises(StateUnwritable, match="no space left"), WriterLock(small_disk):
        pass
    (small_disk / "filler").unlink()
    with WriterLock(small_disk), open_database(small_disk / "state.db") as database:
        database.migrate()


def test_weights_that_do_not_fit_leave_the_former_version_and_no_rubbish(small_disk: Path) -> None:
    store = ArtifactStore(small_disk / "versions")
    with store.stage(1) as staging:
        save_file({"w": np.zeros(1000, np.float32)}, staging / "model.safetensors")
        store.seal(staging, 1, {})
    # safetensors raises its own error, with the reason in words only
    with pytest.raises(StateUnwritable, match="no space left"), store.stage(2) as staging:
        save_file({"w": np.zeros(1_000_000, np.float32)}, staging / "model.safetensors")
    with pytest.raises(StateUnwritable, match="no space left"), store.stage(2) as staging:
        (staging / "model.safetensors").write_bytes(bytes(2_000_000))
    store.verify(1)
    assert not store.path(2).exists()
    assert list((store.root / ".staging").iterdir()) == []


def test_a_manifest_that_does_not_fit_seals_nothing(small_disk: Path) -> None:
    store = ArtifactStore(small_disk / "versions")
    with pytest.raises(StateUnwritable, match="no space left"), store.stage(1) as staging:
        (staging / "model.safetensors").write_bytes(b"weights")
        fill(small_disk)
        store.seal(staging, 1, {})
    assert not store.path(1).exists()
    (small_disk / "filler").unlink()
    assert store.clean_staging() == []


@pytest.mark.parametrize("operation", ["fsync", "rename", "chmod"])
@pytest.mark.parametrize(
    ("number", "hint"),
    [
        (errno.ENOSPC, "no space left"),
        (errno.EROFS, "remount"),
        (errno.EIO, "kernel log"),
        (errno.EDQUOT, "space"),
    ],
)
def test_a_failing_operation_seals_nothing_and_says_what_to_do(
    artifacts: ArtifactStore, monkeypatch: pytest.MonkeyPatch, operation: str, number: int, hint: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    with pytest.raises(StateUnwritable, match=hint) as failure, artifacts.stage(1) as staging:
        (staging / "model.safetensors").write_bytes(b"weights")
        (staging / "model.safetensors").chmod(0o600)  # as safetensors leaves it
        monkeypatch.setattr(os, operation, fail)
        artifacts.seal(staging, 1, {})
    assert "\n" not in str(failure.value)
    assert not artifacts.path(1).exists()


def test_an_error_of_the_caller_is_not_blamed_on_the_disk(artifacts: ArtifactStore) -> None:
    with pytest.raises(ConnectionResetError), artifacts.stage(1):
        raise ConnectionResetError(errno.ECONNRESET, "reset by peer")
    with pytest.raises(ValueError, match="nonsense"), artifacts.stage(1):
        raise ValueError("nonsense")


def test_a_directory_that_may_not_be_written_is_named(public_directory: Path, unprivileged: Unprivileged) -> None:
    version = public_directory / "versions" / "v1"
    version.mkdir(parents=True)
    public_directory.chmod(0o555)
    store = ArtifactStore(public_directory / "versions")
    store.root.chmod(0o555)
    with unprivileged():
        with pytest.raises(StateUnwritable, match=str(public_directory)), WriterLock(public_directory):
            pass
        with pytest.raises(StateUnwritable, match="change its owner or mode"), store.stage(2):
            pass
        with pytest.raises(StateUnwritable, match="change its owner or mode"):
            store.remove(1)
        with pytest.raises(StateUnwritable, match="change its owner or mode"):
            point_current(public_directory / "current", version)
        database = open_database(public_directory / "state.db")
        with database, pytest.raises(StateUnwritable, match="must be able to write"):
            database.migrate()
    assert version.is_dir()
    public_directory.chmod(0o755)
    store.root.chmod(0o755)


def test_a_read_only_database_reads_but_does_not_write(public_directory: Path, unprivileged: Unprivileged) -> None:
    file = public_directory / "state.db"
    # As beside a running daemon: its open connection keeps the write-ahead log in place.
    with open_database(file) as daemon:
        daemon.migrate()
        with daemon.transaction() as session:
            session.add(Control(key="a", value="1"))
        for path in public_directory.iterdir():
            path.chmod(0o444)
        public_directory.chmod(0o555)
        with unprivileged(), open_database(file) as visitor:
            with visitor.read() as session:
                assert session.exec(select(Control.key)).all() == ["a"]
            with pytest.raises(StateUnwritable, match="read-only"), visitor.transaction() as session:
                session.add(Control(key="b", value="1"))
        public_directory.chmod(0o755)


def test_a_remounted_read_only_disk_is_named(small_disk: Path) -> None:
    store = ArtifactStore(small_disk / "versions")
    with open_database(small_disk / "state.db") as database:
        database.migrate()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(StateUnwritable, match="read-only file system"), WriterLock(small_disk):
        pass
    with pytest.raises(StateUnwritable, match="read-only file system"), store.stage(1):
        pass
    database = open_database(small_disk / "state.db")
    with database, pytest.raises(StateUnwritable), database.transaction() as session:
        session.add(Control(key="a", value="1"))
