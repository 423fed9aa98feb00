from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from conftest import FAST_DISK
from hypothesis import given, settings
from hypothesis import strategies as st

from store import ArtifactCorrupt, ArtifactRefused, ArtifactStore, StateUnwritable, link_or_copy

if TYPE_CHECKING:
    from collections.abc import Callable

FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model-00001.safetensors": bytes(range(256)) * 4,
    "model-00002.safetensors": bytes(reversed(range(256))) * 4,
    "tokenizer/vocab.json": "{“é”}".encode(),
    "empty.txt": b"",
}


def seal(store: ArtifactStore, version_id: int = 1, files: dict[str, bytes] = FILES, extra: dict | None = None) -> str:
    with store.stage(version_id) as staging:
        for name, content in files.items():
            (staging / name).parent.mkdir(parents=True, exist_ok=True)
            (staging / name).write_bytes(content)
        return store.seal(staging, version_id, extra or {})


def test_a_sealed_version_is_what_was_staged(artifacts: ArtifactStore) -> None:
    digest = seal(artifacts, extra={"base": "abc", "edits": 3})
    artifacts.verify(1)
    artifacts.verify(1, digest)
    manifest = artifacts.manifest(1)
    assert manifest.extra == {"base": "abc", "edits": 3}
    assert manifest.digest == digest
    assert {name: f.size for name, f in manifest.files.items()} == {n: len(c) for n, c in FILES.items()}
    for name, content in FILES.items():
        assert (artifacts.path(1) / name).read_bytes() == content
    assert list((artifacts.root / ".staging").iterdir()) == []


def test_the_digest_is_the_documented_formula_and_nothing_else(artifacts: ArtifactStore) -> None:
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()}
    canonical = json.dumps(hashes, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    expected = hashlib.sha256(canonical).hexdigest()
    assert seal(artifacts, 1, extra={"time": 1}) == expected
    assert seal(artifacts, 2, dict(reversed(FILES.items())), extra={"time": 2}) == expected
    assert seal(artifacts, 3, FILES | {"config.json": b"{ }"}) != expected


def test_modes_are_readable_by_a_serving_engine_of_another_user(artifacts: ArtifactStore) -> None:
    former = os.umask(0o077)
    try:
        seal(artifacts)
    finally:
        os.umask(former)
    directory = artifacts.path(1)
    modes = {p.relative_to(directory).as_posix(): p.stat().st_mode & 0o777 for p in directory.rglob("*")}
    assert modes.pop("tokenizer") == 0o755
    assert set(modes.values()) == {0o644}
    assert directory.stat().st_mode & 0o777 == 0o755
    assert artifacts.root.stat().st_mode & 0o777 == 0o755


def test_everything_is_flushed_before_the_manifest_and_the_manifest_before_the_rename(
    artifacts: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    seal(artifacts, 7)  # so that root and .staging exist
    log: list[tuple[str, str]] = []
    fsync, rename, write_bytes = os.fsync, os.rename, Path.write_bytes

    def logged_fsync(descriptor: int) -> None:
        log.append(("fsync", os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))))  # noqa: PTH115, PTH119
        fsync(descriptor)

    def logged_rename(source: Path, target: Path) -> None:
        log.append(("rename", Path(target).name))
        rename(source, target)

    def logged_write(path: Path, content: bytes) -> int:
        log.append(("write", path.name))
        return write_bytes(path, content)

    with artifacts.stage(1) as staging:
        (staging / "tokenizer").mkdir()
        (staging / "tokenizer" / "vocab.json").write_bytes(b"{}")
        (staging / "model.safetensors").write_bytes(b"weights")
        monkeypatch.setattr(os, "fsync", logged_fsync)
        monkeypatch.setattr(os, "rename", logged_rename)
        monkeypatch.setattr(Path, "write_bytes", logged_write)
        artifacts.seal(staging, 1, {})
        monkeypatch.undo()
    manifest = log.index(("write", "MANIFEST.json"))
    assert set(log[:manifest]) == {
        ("fsync", name) for name in ("model.safetensors", "vocab.json", "tokenizer", staging.name)
    }
    assert log[manifest + 1 :] == [
        ("fsync", "MANIFEST.json"),
        ("fsync", staging.name),
        ("rename", "v1"),
        ("fsync", "versions"),
        ("fsync", ".staging"),
    ]


def test_sealing_the_same_content_again_is_success_and_keeps_what_is_there(artifacts: ArtifactStore) -> None:
    digest = seal(artifacts, extra={"run": 1})
    inode = (artifacts.path(1) / "config.json").stat().st_ino
    assert seal(artifacts, extra={"run": 2}) == digest
    assert (artifacts.path(1) / "config.json").stat().st_ino == inode
    assert artifacts.manifest(1).extra == {"run": 1}
    assert list((artifacts.root / ".staging").iterdir()) == []


def test_sealing_other_content_replaces(artifacts: ArtifactStore) -> None:
    first = seal(artifacts)
    second = seal(artifacts, files={"model.safetensors": b"other"})
    assert first != second
    artifacts.verify(1, second)
    assert not (artifacts.path(1) / "config.json").exists()
    assert list((artifacts.root / ".staging").iterdir()) == []


def test_sealing_the_same_content_mends_a_damaged_version(artifacts: ArtifactStore) -> None:
    digest = seal(artifacts)
    (artifacts.path(1) / "config.json").write_bytes(b"damaged")
    assert seal(artifacts) == digest
    artifacts.verify(1)


def test_a_foreign_directory_in_the_way_is_replaced(artifacts: ArtifactStore) -> None:
    (artifacts.path(1) / "junk").mkdir(parents=True)
    artifacts.verify(1, seal(artifacts))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "a.pt", "sub/a.pth", "a.PKL", "optimizer.ckpt", "modeling_x.py"])
def test_pickles_and_code_are_refused(artifacts: ArtifactStore, name: str) -> None:
    with pytest.raises(ArtifactRefused, match="safetensors"):
        seal(artifacts, files=FILES | {name: b"x"})
    assert not artifacts.path(1).exists()
    assert list((artifacts.root / ".staging").iterdir()) == []


@pytest.mark.parametrize("make", [lambda p: p.symlink_to("/etc/passwd"), lambda p: p.symlink_to("/etc"), os.mkfifo])
def test_anything_but_plain_files_is_refused(artifacts: ArtifactStore, make: Callable[[Path], None]) -> None:
    with artifacts.stage(1) as staging:
        (staging / "model.safetensors").write_bytes(b"x")
        make(staging / "odd")
        with pytest.raises(ArtifactRefused, match="odd is not a plain file"):
            artifacts.seal(staging, 1, {})


def test_an_empty_directory_is_refused(artifacts: ArtifactStore) -> None:
    with pytest.raises(ArtifactRefused, match="empty"):
        seal(artifacts, files={})


def test_metadata_that_is_not_json_is_refused_before_anything_is_installed(artifacts: ArtifactStore) -> None:
    for extra, error in (({"loss": float("nan")}, ValueError), ({"path": Path()}, TypeError)):
        with pytest.raises(error):
            seal(artifacts, extra=extra)
    assert not artifacts.path(1).exists()


def test_only_a_directory_from_stage_is_sealed(artifacts: ArtifactStore, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"stage\(\)"):
        artifacts.seal(tmp_path, 1, {})


def test_a_known_digest_spares_reading_a_hard_link(artifacts: ArtifactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    seal(artifacts, 1)
    known = {"model-00001.safetensors": artifacts.manifest(1).files["model-00001.safetensors"].sha256}
    read: list[str] = []
    original = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda f, name: read.append(Path(f.name).name) or original(f, name))
    with artifacts.stage(2) as staging:
        assert link_or_copy(artifacts.path(1) / "model-00001.safetensors", staging / "model-00001.safetensors")
        (staging / "model-00002.safetensors").write_bytes(b"edited")
        artifacts.seal(staging, 2, {}, known=known)
    assert read == ["model-00002.safetensors"]
    monkeypatch.undo()
    artifacts.verify(2)
    artifacts.remove(1)  # the other name goes, the content stays
    artifacts.verify(2)


def test_a_known_digest_of_a_copy_is_checked_not_believed(artifacts: ArtifactStore) -> None:
    known = {"model.safetensors": hashlib.sha256(b"right").hexdigest()}
    with artifacts.stage(1) as staging:
        (staging / "model.safetensors").write_bytes(b"wrong")
        with pytest.raises(ArtifactCorrupt, match=r"model\.safetensors"):
            artifacts.seal(staging, 1, {}, known=known)
        (staging / "model.safetensors").write_bytes(b"right")
        artifacts.seal(staging, 1, {}, known=known)
    artifacts.verify(1)


def test_a_known_digest_of_a_missing_file_is_a_mistake(artifacts: ArtifactStore) -> None:
    with artifacts.stage(1) as staging:
        (staging / "model.safetensors").write_bytes(b"x")
        with pytest.raises(ValueError, match="absent"):
            artifacts.seal(staging, 1, {}, known={"absent": "0" * 64})


def test_what_was_not_sealed_is_deleted_and_the_error_comes_through(artifacts: ArtifactStore) -> None:
    with pytest.raises(ZeroDivisionError), artifacts.stage(1) as staging:
        (staging / "model.safetensors").write_bytes(b"x")
        raise ZeroDivisionError
    assert list((artifacts.root / ".staging").iterdir()) == []


def test_leftovers_are_cleaned_and_named(artifacts: ArtifactStore) -> None:
    assert artifacts.clean_staging() == []
    seal(artifacts)
    for name in ("v2-00ff", "v1-00ff.replaced", "v1-00ff.removed"):
        (artifacts.root / ".staging" / name).mkdir()
        (artifacts.root / ".staging" / name / "model.safetensors").touch()
    (artifacts.root / ".staging" / "stray").touch()
    assert artifacts.clean_staging() == ["stray", "v1-00ff.removed", "v1-00ff.replaced", "v2-00ff"]
    assert artifacts.clean_staging() == []
    artifacts.verify(1)


def test_removing_is_whole_and_repeatable(artifacts: ArtifactStore) -> None:
    seal(artifacts)
    artifacts.remove(1)
    artifacts.remove(1)
    assert not artifacts.path(1).exists()
    assert list((artifacts.root / ".staging").iterdir()) == []


def test_a_version_that_is_not_there_is_corrupt_with_its_manifest_named(artifacts: ArtifactStore) -> None:
    for ask in (artifacts.verify, artifacts.manifest):
        with pytest.raises(ArtifactCorrupt) as corrupt:
            ask(9)
        assert (corrupt.value.version_id, corrupt.value.file) == (9, "MANIFEST.json")


def test_a_version_sealed_under_another_number_is_corrupt(artifacts: ArtifactStore) -> None:
    seal(artifacts, 1)
    artifacts.path(1).rename(artifacts.path(2))
    with pytest.raises(ArtifactCorrupt, match="expected version 2, found version 1"):
        artifacts.verify(2)


def test_a_consistent_forgery_does_not_have_the_digest_of_the_database(artifacts: ArtifactStore) -> None:
    digest = seal(artifacts)
    forged = seal(artifacts, files=FILES | {"config.json": b"{}"})
    artifacts.verify(1)
    with pytest.raises(ArtifactCorrupt) as corrupt:
        artifacts.verify(1, digest)
    assert (corrupt.value.expected, corrupt.value.found) == (digest, forged)


def test_a_shard_of_the_wrong_size_is_found_without_reading_it(artifacts: ArtifactStore) -> None:
    seal(artifacts)
    with (artifacts.path(1) / SHARDS[0]).open("ab") as file:
        file.truncate(10_000_000_000)  # sparse
    with pytest.raises(ArtifactCorrupt, match="expected 1024 bytes, found 10000000000 bytes"):
        artifacts.verify(1)


def test_a_missing_parent_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(StateUnwritable, match="create it"),
        ArtifactStore(tmp_path / "no" / "versions").stage(1),
    ):
        pass


def flip(path: Path, position: int, mask: int) -> None:
    content = bytearray(path.read_bytes())
    content[position % len(content)] ^= mask
    path.write_bytes(bytes(content))


def test_every_byte_of_the_manifest_counts() -> None:
    with tempfile.TemporaryDirectory(dir=FAST_DISK) as top:
        artifacts = ArtifactStore(Path(top) / "versions")
        seal(artifacts, extra={"note": "Grüße", "n": [1, 2.5, None]})
        path = artifacts.path(1) / "MANIFEST.json"
        intact = path.read_bytes()
        for position in range(len(intact)):
            flip(path, position, 1 << position % 8)
            with pytest.raises(ArtifactCorrupt):
                artifacts.verify(1)
            path.write_bytes(intact)
        for length in range(len(intact)):
            path.write_bytes(intact[:length])
            with pytest.raises(ArtifactCorrupt):
                artifacts.manifest(1)
        path.write_bytes(intact)
        artifacts.verify(1)


@pytest.mark.parametrize("content", [b"[]", b"null", b'{"files": 3}', b"[" * 100_000, b"\xff", b'{"files": {"a": 1}}'])
def test_a_manifest_that_is_other_json_is_corrupt(artifacts: ArtifactStore, content: bytes) -> None:
    seal(artifacts)
    (artifacts.path(1) / "MANIFEST.json").write_bytes(content)
    with pytest.raises(ArtifactCorrupt, match=r"MANIFEST\.json"):
        artifacts.verify(1)


NAMES = sorted(FILES)
FULL_NAMES = sorted(name for name in FILES if FILES[name])
SHARDS = ["model-00001.safetensors", "model-00002.safetensors"]


@st.composite
def damages(draw: st.DrawFn) -> tuple[str, Callable[[Path], None]]:
    """A way to damage a version, and the file that verify must name."""
    kind = draw(st.sampled_from(["flip", "truncate", "grow", "missing", "extra", "symlink", "swap", "hidden"]))
    name = draw(st.sampled_from(FULL_NAMES if kind in ("flip", "truncate") else NAMES))
    number = draw(st.integers(0, 2000))
    mask = draw(st.integers(1, 255))

    def damage(directory: Path) -> None:
        path = directory / name
        match kind:
            case "flip":
                flip(path, number, mask)
            case "truncate":
                path.write_bytes(path.read_bytes()[: number % path.stat().st_size])
            case "grow":
                path.write_bytes(path.read_bytes() + bytes(number + 1))
            case "missing":
                path.unlink()
            case "extra":
                (directory / "tokenizer" / f"added{number}").write_bytes(b"")
            case "hidden":
                (directory / f".added{number}").write_bytes(b"x")
            case "symlink":
                path.rename(directory.parent / "elsewhere")
                path.symlink_to(directory.parent / "elsewhere")
            case "swap":
                contents = [(directory / shard).read_bytes() for shard in SHARDS]
                for shard, content in zip(SHARDS, reversed(contents), strict=True):
                    (directory / shard).write_bytes(content)

    named = {"extra": f"tokenizer/added{number}", "hidden": f".added{number}", "swap": SHARDS[0]}
    return named.get(kind, name), damage


@settings(max_examples=120, deadline=None)
@given(damages())
def test_any_damage_is_found_and_the_file_is_named(damaged: tuple[str, Callable[[Path], None]]) -> None:
    name, damage = damaged
    with tempfile.TemporaryDirectory(dir=FAST_DISK) as top:
        store = ArtifactStore(Path(top) / "versions")
        seal(store)
        store.verify(1)
        damage(store.path(1))
        with pytest.raises(ArtifactCorrupt) as corrupt:
            store.verify(1)
        assert corrupt.value.file == name
        assert name in str(corrupt.value)
        assert "\n" not in str(corrupt.value)


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(
        st.text("abcé 😀.-_", min_size=1, max_size=8).filter(lambda n: n.strip(".") and not n.startswith("MANI")),
        st.binary(max_size=50),
        min_size=1,
        max_size=5,
    ),
    st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5) | st.none() | st.booleans(), max_size=3),
)
def test_any_files_and_metadata_round_trip(files: dict[str, bytes], extra: dict[str, object]) -> None:
    with tempfile.TemporaryDirectory(dir=FAST_DISK) as top:
        store = ArtifactStore(Path(top) / "versions")
        digest = seal(store, files=files, extra=extra)
        store.verify(1, digest)
        assert store.manifest(1).extra == extra
        assert set(store.manifest(1).files) == set(files)
