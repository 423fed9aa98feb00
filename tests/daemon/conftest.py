"""The small world, shared by all tests of the daemon, and a real database."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from small_world import Factsyncd, save_model, turtle, write_config, write_text

from daemon.config import load_settings
from daemon.runtime import Runtime
from editor import Preparation
from store import Database, open_database

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="session")
def ordinary_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "text.txt")


@pytest.fixture(scope="session")
def factsyncd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Factsyncd]:
    commands = Factsyncd(tmp_path_factory.mktemp("commands"))
    yield commands
    commands.close()


@pytest.fixture(scope="session")
def prepared(
    tmp_path_factory: pytest.TempPathFactory, base_model: Path, ordinary_text: Path, factsyncd: Factsyncd
) -> Path:
    """A directory whose state has read the first instant."""
    directory = tmp_path_factory.mktemp("prepared")
    (directory / "facts.ttl").write_text(turtle(after=False), "utf-8")
    config = write_config(directory / "factsyncd.toml", base_model, ordinary_text, Path("facts.ttl"))
    finished = factsyncd("once", "--json", "--config", config)
    assert (finished.code, finished.errors) == (0, ""), finished.errors
    return directory


@pytest.fixture
def ready(prepared: Path, tmp_path: Path) -> Path:
    """The configuration of a copy of it."""
    shutil.copytree(prepared, tmp_path / "ready", symlinks=True)
    return tmp_path / "ready" / "factsyncd.toml"


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database file fresh from the migrations, to be copied."""
    file = tmp_path_factory.mktemp("template") / "factsyncd.sqlite"
    with open_database(file) as database:
        database.migrate()
    return file


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    """The snapshot at the first instant."""
    file = tmp_path / "facts.ttl"
    file.write_text(turtle(after=False), "utf-8")
    return file


@pytest.fixture
def runtime(tmp_path: Path, snapshot: Path, migrated_file: Path) -> Iterator[Runtime]:
    """A runtime over a migrated database, with no version and no model yet."""
    config = write_config(tmp_path / "factsyncd.toml", tmp_path / "no-model", tmp_path / "no-text", snapshot)
    made = Runtime(load_settings(config))
    made.make_state_directory()
    shutil.copyfile(migrated_file, tmp_path / "state" / "factsyncd.sqlite")
    yield made
    made.database.close()


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
def database(runtime: Runtime) -> Database:
    return runtime.database


@pytest.fixture
def all_writable(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """What can be written is the editor's business; here it is all."""
    monkeypatch.setattr(runtime, "model", lambda _version: object())
    monkeypatch.setattr(runtime, "settings_digest", lambda _model: "s")
    monkeypatch.setattr(runtime, "preparation", lambda _model: Preparation(("{}",), {}))
    monkeypatch.setattr("daemon.batch.check_request", lambda *_: None)
