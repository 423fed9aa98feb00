"""Promise 5 under kill -9: every version on disk is whole, old or new, whenever the process died."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from children.killed_artifacts import NEW, OLD, seal
from conftest import CHILDREN, REPOSITORY
from sqlmodel import select

from store import ArtifactCorrupt, ArtifactStore, open_database
from store.tables import Control

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(scope="module")
def deaths(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("deaths")
    subprocess.run(
        [sys.executable, CHILDREN / "killed_artifacts.py", top],
        check=True,
        cwd=REPOSITORY,
        env={"PYTHONPATH": str(REPOSITORY)},
        timeout=120,
    )
    return top


def stores(top: Path, scenario: str) -> list[ArtifactStore]:
    numbered = sorted((top / scenario).iterdir(), key=lambda path: int(path.name))
    return [ArtifactStore(path / "versions") for path in numbered]


def content(store: ArtifactStore) -> dict[str, bytes] | None:
    """What a reader that verifies first gets: all of it, or nothing."""
    directory = store.path(3)
    if not directory.exists():
        with pytest.raises(ArtifactCorrupt, match=r"MANIFEST\.json"):
            store.verify(3)
        return None
    store.verify(3)
    return {name: (directory / name).read_bytes() for name in store.manifest(3).files}


@pytest.mark.parametrize(
    ("scenario", "before", "after"),
    [("fresh", None, NEW), ("again", NEW, NEW), ("other", OLD, NEW), ("remove", OLD, None)],
)
def test_a_kill_at_any_file_operation_leaves_the_old_or_the_new_version_whole(
    deaths: Path, scenario: str, before: dict[str, bytes] | None, after: dict[str, bytes] | None
) -> None:
    seen = []
    for store in stores(deaths, scenario):
        at_death = content(store)
        assert at_death in (before, after) or (scenario == "other" and at_death is None)
        store.clean_staging()
        seen.append(content(store))
        assert seen[-1] in (before, after)
        assert list(store.root.glob(".staging/*")) == []
    assert len(seen) >= 8, "the kills were not staged"
    assert seen[0] == before
    assert seen[-1] == after
    # Once the new state is there, no later death brings the old one back.
    assert seen == sorted(seen, key=lambda state: state == after)


def test_a_killed_seal_can_be_done_again(deaths: Path) -> None:
    for store in stores(deaths, "fresh"):
        store.clean_staging()
        seal(store, NEW)
        assert content(store) == NEW


def test_a_kill_between_flush_and_commit_leaves_nothing(
    tmp_path: Path, start_child: Callable[..., subprocess.Popen[str]]
) -> None:
    with open_database(tmp_path / "state.db") as database:
        database.migrate()
        child = start_child("killed_transaction.py", "flush", tmp_path / "state.db")
        output, _ = child.communicate(timeout=60)
        assert output.strip() == "2000"
        assert child.returncode == -9
        with database.transaction() as session:  # nor is it locked
            assert session.exec(select(Control)).all() == []
            session.add(Control(key="paused", value="no"))


def test_a_killed_migration_leaves_no_state_and_can_be_done_again(
    tmp_path: Path, start_child: Callable[..., subprocess.Popen[str]]
) -> None:
    child = start_child("killed_transaction.py", "migrate", tmp_path / "state.db")
    child.communicate(timeout=60)
    assert child.returncode == -9
    with open_database(tmp_path / "state.db") as database:
        with pytest.raises(Exception, match="no state here yet"), database.read() as session:
            session.exec(select(Control)).all()
        database.migrate()
        with database.read() as session:
            assert session.exec(select(Control)).all() == []
