"""The small world of the daemon's tests, read at the first instant, to be copied for every fault."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

sys.path += [str(Path(__file__).parents[1] / room) for room in ("daemon", "sources")]

from small_world import LENIENT, Factsyncd, save_model, turtle, write_config, write_text

from store import open_database

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@dataclass(frozen=True)
class World:
    """One snapshot shared by all copies (its path is part of the source's cursor), and a state to copy."""

    top: Path
    model: Path
    text: Path

    @property
    def snapshot(self) -> Path:
        return self.top / "facts.ttl"

    def copy(self, directory: Path, gate: str = LENIENT) -> Path:
        """The configuration of a copy of the state at the first instant, with the second to be pulled."""
        shutil.copytree(self.top / "first" / "state", directory / "state", symlinks=True)
        return write_config(directory / "factsyncd.toml", self.model, self.text, self.snapshot, gate)


@pytest.fixture(scope="session")
def factsyncd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Factsyncd]:
    commands = Factsyncd(tmp_path_factory.mktemp("commands"))
    yield commands
    commands.close()


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory, factsyncd: Factsyncd) -> World:
    top = tmp_path_factory.mktemp("world")
    made = World(top, save_model(top / "model"), write_text(top / "text.txt"))
    made.snapshot.write_text(turtle(after=False), "utf-8")
    config = write_config(top / "first" / "factsyncd.toml", made.model, made.text, made.snapshot)
    finished = factsyncd("once", "--config", config)
    assert (finished.code, finished.errors) == (0, "")
    made.snapshot.write_text(turtle(after=True), "utf-8")
    return made


@pytest.fixture
def state(world: World, tmp_path: Path) -> Callable[..., Path]:
    """Makes the configuration of a fresh copy of the state."""

    def make(name: str = "copy", gate: str = LENIENT) -> Path:
        return world.copy(tmp_path / name, gate)

    return make


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database file fresh from the migrations, to be copied."""
    file = tmp_path_factory.mktemp("template") / "factsyncd.sqlite"
    with open_database(file) as database:
        database.migrate()
    return file
