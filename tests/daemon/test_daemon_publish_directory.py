"""Directory targets: the link, copies that share files, what stays and what goes, and full disks."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from publishing import EAGER, Story
from sqlmodel import select

from daemon import control
from daemon.deliver import deliver
from daemon.errors import NotPossible
from store import ArtifactStore
from store.tables import Publication, PublicationState, Version, VersionState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def tell(tmp_path: Path, migrated_file: Path) -> Iterator[Callable[[str], Story]]:
    made: list[Story] = []

    def make(publish: str) -> Story:
        made.append(Story(tmp_path, migrated_file, publish))
        return made[-1]

    yield make
    for story in made:
        story.runtime.database.close()


def copies(keep: int = 3) -> str:
    return f'[[publish.targets]]\ntype = "directory"\ndirectory = "srv/models"\nkeep = {keep}\n'


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.glob("v*"))


def publish(story: Story, *numbers: int) -> None:
    for number in numbers:
        story.promote(number)
        deliver(story.runtime)


def test_copies_are_whole_and_share_their_files(tell: Callable[[str], Story], tmp_path: Path) -> None:
    story = tell(copies())
    publish(story, 1, 2)
    models = tmp_path / "srv" / "models"
    assert (models / "current").readlink() == Path("v2")
    ArtifactStore(models).verify(2)
    for name in ("model.safetensors", "config.json"):
        assert (models / "v2" / name).samefile(story.state / "versions" / "v2" / name) or name == "config.json"
    # The configuration is the same in all versions: one file.
    assert (models / "v2" / "config.json").samefile(models / "v1" / "config.json")


def test_a_copy_elsewhere_shares_what_it_can_with_the_copies_there(
    tell: Callable[[str], Story], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.link

    def within_one_disk(source: Path, made: Path) -> None:
        if ("srv" in Path(source).parts) != ("srv" in Path(made).parts):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        real(source, made)

    monkeypatch.setattr("store.links.os.link", within_one_disk)
    story = tell(copies())
    publish(story, 1, 2)
    models = tmp_path / "srv" / "models"
    ArtifactStore(models).verify(1)
    ArtifactStore(models).verify(2)
    assert not (models / "v2" / "model.safetensors").samefile(story.state / "versions" / "v2" / "model.safetensors")
    assert (models / "v2" / "config.json").samefile(models / "v1" / "config.json")


def test_the_last_copies_stay_and_nothing_that_is_not_ours_goes(tell: Callable[[str], Story], tmp_path: Path) -> None:
    story = tell(copies(keep=2))
    models = tmp_path / "srv" / "models"
    models.mkdir(parents=True)
    (models / "v7.bak").mkdir()
    publish(story, 0, 1, 2)
    assert names(models) == ["v1", "v2", "v7.bak"]
    publish(story, 0)
    assert names(models) == ["v0", "v2", "v7.bak"]


def test_what_an_unfinished_publication_needs_stays(tell: Callable[[str], Story], tmp_path: Path) -> None:
    engine = '[[publish.targets]]\ntype = "vllm"\nurl = "http://127.0.0.1:9"\nmodel = "kb"\n'
    story = tell("retry_seconds = 1000\n" + copies(keep=1) + engine)
    publish(story, 1)
    with story.runtime.database.transaction() as session:
        row = session.exec(select(Publication).where(Publication.target == "vllm")).one()
        row.state = PublicationState.DELIVERED
    publish(story, 2)
    # The engine still has version 1, read perhaps from these copies, and is to get version 2.
    assert names(tmp_path / "srv" / "models") == ["v1", "v2"]


def test_a_damaged_copy_is_made_again(tell: Callable[[str], Story], tmp_path: Path) -> None:
    story = tell(copies())
    publish(story, 1)
    models = tmp_path / "srv" / "models"
    (models / "v1" / "config.json").unlink()
    publish(story, 1)
    ArtifactStore(models).verify(1)
    assert story.rows("directory") == [(1, "delivered"), (1, "delivered")]


def test_a_disk_that_is_full_while_a_copy_is_made_leaves_nothing_half_published(
    tell: Callable[[str], Story], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    story = tell(EAGER + copies())
    publish(story, 1)

    def full(source: object, made: Path) -> None:
        if Path(made).name == "model.safetensors":
            raise OSError(errno.ENOSPC, "No space left on device")
        Path(made).write_text("half")

    models = tmp_path / "srv" / "models"
    with monkeypatch.context() as staged:
        staged.setattr("store.links.os.link", full)
        publish(story, 2)
    assert names(models) == ["v1"]
    assert list((models / ".staging").iterdir()) == []
    assert (models / "current").readlink() == Path("v1")
    row = story.newest("directory")
    assert (row.version_id, row.state) == (2, PublicationState.PENDING)
    assert "space" in row.detail
    deliver(story.runtime)
    assert (models / "current").readlink() == Path("v2")


def test_a_disk_of_that_size_for_real(tell: Callable[[str], Story], tmp_path: Path, small_disk: Path) -> None:
    story = tell(EAGER + f'[[publish.targets]]\ntype = "directory"\ndirectory = "{small_disk}/models"\n')
    publish(story, 1)
    filler = small_disk / "filler"
    with pytest.raises(OSError, match="No space left"), filler.open("wb", buffering=0) as file:
        while True:
            file.write(b"0" * 4096)
    publish(story, 2)
    models = small_disk / "models"
    assert names(models) == ["v1"]
    assert (models / "current").readlink() == Path("v1")
    assert story.newest("directory").state is PublicationState.PENDING
    filler.unlink()
    deliver(story.runtime)
    ArtifactStore(models).verify(2)
    assert (models / "current").readlink() == Path("v2")


def test_something_in_the_place_of_the_link_is_told(tell: Callable[[str], Story]) -> None:
    story = tell('[[publish.targets]]\ntype = "directory"\n')
    (story.state / "current").mkdir()
    publish(story, 1)
    assert "is not a symbolic link: move it out of the way" in story.newest("directory").detail


def test_files_of_old_versions_go_and_their_rows_stay(tell: Callable[[str], Story]) -> None:
    story = tell("keep = 1\n")
    with story.runtime.database.transaction() as session:
        for number, state in ((3, VersionState.REJECTED), (4, VersionState.REJECTED), (5, VersionState.CANDIDATE)):
            session.add(
                Version(
                    id=number, parent_id=2, state=state, base_digest="b", settings_digest="s", digest="d",
                    path=f"versions/v{number}",
                )
            )  # fmt: skip
    for number in (3, 4, 5):
        (story.state / "versions" / f"v{number}").mkdir()
    (story.state / "adapters" / "rank-8" / "v3").mkdir(parents=True)
    publish(story, 1, 2)
    # Kept: the base, the promoted one and its parent, the candidate, and one more.
    assert names(story.state / "versions") == ["v0", "v1", "v2", "v4", "v5"]
    assert names(story.state / "adapters" / "rank-8") == []
    with story.runtime.database.read() as session:
        gone = session.get_one(Version, 3)
    assert (gone.path, gone.digest) == (None, "d")


def test_what_a_target_has_stays(tell: Callable[[str], Story]) -> None:
    engine = '[[publish.targets]]\ntype = "vllm"\nurl = "http://127.0.0.1:9"\nmodel = "kb"\n'
    story = tell("keep = 1\nretry_seconds = 1000\n" + engine)
    with story.runtime.database.transaction() as session:
        session.add(Publication(version_id=1, target="vllm", state=PublicationState.DELIVERED))
        session.get_one(Version, 2).parent_id = 0
    # A rejected one takes the only place that is free.
    with story.runtime.database.transaction() as session:
        session.add(Version(id=3, state=VersionState.REJECTED, base_digest="b", settings_digest="s"))
    (story.state / "versions" / "v3").mkdir()
    publish(story, 2)
    assert names(story.state / "versions") == ["v0", "v1", "v2", "v3"]


def test_a_trial_without_files_takes_no_place(tell: Callable[[str], Story]) -> None:
    story = tell("keep = 1\n")
    with story.runtime.database.transaction() as session:
        session.add(Version(id=3, state=VersionState.REJECTED, base_digest="b", settings_digest="s"))
        session.get_one(Version, 2).parent_id = 0
    publish(story, 1, 2)
    assert names(story.state / "versions") == ["v0", "v1", "v2"]


def test_a_version_whose_files_are_gone_cannot_be_rolled_back_to(tell: Callable[[str], Story]) -> None:
    story = tell("")
    publish(story, 1, 2)
    story.runtime.artifacts.remove(1)
    with story.runtime.database.transaction() as session:
        session.get_one(Version, 1).path = None
    with pytest.raises(NotPossible, match="the files of version 1 are not kept any more"):
        control.rollback(story.runtime, 1)
