from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from store import StateUnwritable, link_or_copy, point_current


def version(root: Path, number: int) -> Path:
    directory = root / "versions" / f"v{number}"
    directory.mkdir(parents=True)
    (directory / "number").write_text(str(number))
    return directory


def test_current_moves_from_version_to_version(tmp_path: Path) -> None:
    current = tmp_path / "current"
    for number in (1, 2):
        point_current(current, version(tmp_path, number))
        assert os.readlink(current) == f"versions/v{number}"  # noqa: PTH115 - relative, as written
        assert (current / "number").read_text() == str(number)
    assert {path.name for path in tmp_path.iterdir()} == {"versions", "current"}


def test_pointing_again_is_harmless_also_after_a_kill_half_way(tmp_path: Path) -> None:
    target = version(tmp_path, 1)
    (tmp_path / ".current.new").symlink_to("nowhere")
    for _ in range(2):
        point_current(tmp_path / "current", target)
    assert (tmp_path / "current").resolve() == target
    assert not (tmp_path / ".current.new").is_symlink()


def test_a_dangling_link_is_mended(tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to("gone")
    point_current(tmp_path / "current", version(tmp_path, 1))
    assert (tmp_path / "current" / "number").read_text() == "1"


def test_the_state_directory_can_be_moved(tmp_path: Path) -> None:
    point_current(tmp_path / "a" / "current", version(tmp_path / "a", 1))
    (tmp_path / "a").rename(tmp_path / "b")
    assert (tmp_path / "b" / "current" / "number").read_text() == "1"


def test_a_relative_path_means_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version(tmp_path / "state", 1)
    monkeypatch.chdir(tmp_path)
    point_current(Path("state/current"), Path("state/versions/v1"))
    assert (tmp_path / "state" / "current" / "number").read_text() == "1"


def test_a_reader_always_finds_a_version(tmp_path: Path) -> None:
    versions = [version(tmp_path, 1), version(tmp_path, 2)]
    current = tmp_path / "current"
    point_current(current, versions[0])
    done = threading.Event()
    failures = []

    def read() -> None:
        while not done.is_set():
            try:
                assert (current / "number").read_text() in ("1", "2")
            except OSError as error:
                failures.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for turn in range(50):
        point_current(current, versions[turn % 2])
    done.set()
    reader.join()
    assert failures == []


def test_a_target_that_is_not_there_changes_nothing(tmp_path: Path) -> None:
    point_current(tmp_path / "current", version(tmp_path, 1))
    with pytest.raises(StateUnwritable, match="factsyncd verify"):
        point_current(tmp_path / "current", tmp_path / "versions" / "v2")
    assert (tmp_path / "current" / "number").read_text() == "1"


def test_a_directory_in_place_of_the_link_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "current").mkdir()
    with pytest.raises(StateUnwritable, match="not a symbolic link"):
        point_current(tmp_path / "current", version(tmp_path, 1))
    assert (tmp_path / "current").is_dir()


def test_a_hard_link_shares_the_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"shard")
    (tmp_path / "to_a").symlink_to("a")
    assert link_or_copy(tmp_path / "to_a", tmp_path / "b") is True
    assert (tmp_path / "a").samefile(tmp_path / "b")
    assert not (tmp_path / "b").is_symlink()


def test_across_file_systems_it_is_a_copy(tmp_path: Path, small_disk: Path) -> None:
    (tmp_path / "a").write_bytes(b"shard")
    assert link_or_copy(tmp_path / "a", small_disk / "b") is False
    assert (small_disk / "b").read_bytes() == b"shard"


def test_a_link_that_the_kernel_refuses_becomes_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EMLINK, "too many links")

    (tmp_path / "a").write_bytes(b"shard")
    monkeypatch.setattr(os, "link", refuse)
    assert link_or_copy(tmp_path / "a", tmp_path / "b") is False
    assert (tmp_path / "b").read_bytes() == b"shard"


def test_a_source_that_is_not_there_is_a_mistake_of_the_caller(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        link_or_copy(tmp_path / "absent", tmp_path / "b")
    (tmp_path / "a").touch()
    with pytest.raises(StateUnwritable):
        link_or_copy(tmp_path / "a", tmp_path / "absent" / "b")
