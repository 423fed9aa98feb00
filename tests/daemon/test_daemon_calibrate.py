"""Calibrate: files of facts, and the settings file that the service then uses."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from daemon.calibrate import check_output, read_facts, write_settings
from daemon.cli import app
from daemon.config import load_settings
from daemon.errors import ConfigInvalid
from editor import Calibration, KnownFact, MemitSettings
from editor.trials import Trial

FOUND = Calibration(
    MemitSettings(layers=(3, 4, 5), covariance_weight=562.0, clamp=0.6),
    (Trial((3, 4, 5), 562.0, 0.9, 0.8, 0.95, 0.9), Trial((1, 2, 3), 10.0, 0.5, 0.8, 0.95, 0.9)),
)


def test_facts_are_read_line_by_line(tmp_path: Path) -> None:
    file = tmp_path / "facts.jsonl"
    file.write_text(
        '{"relation": "P36", "prompt": "The capital of {} is", "subject": "Peru", "answer": "Lima"}\n\n'
        '{"relation": "P36", "prompt": "The capital of {} is", "subject": "Chad", "answer": "N\u2019Djamena", '
        '"paraphrases": ["{} is governed from"]}\n'
    )
    first, second = read_facts(file)
    assert first == KnownFact("P36", "The capital of {} is", "Peru", "Lima")
    assert second.paraphrases == ("{} is governed from",)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("not json", "line 2: line: Invalid JSON"),
        ('{"relation": "P36", "prompt": "The capital of {} is", "subject": "Peru"}', "line 2: answer: Field required"),
        (
            '{"relation": "r", "prompt": "no place", "subject": "s", "answer": "a"}',
            "line 2: prompt 'no place': needs exactly",
        ),
        (
            '{"relation": "r", "prompt": "{}", "subject": "s", "answer": "a", "paraphrases": ["{}{}"]}',
            "line 2: prompt '{}{}': needs",
        ),
        ('{"relation": "r", "prompt": "{}", "subject": "s", "answer": "a", "sbject": "s"}', "line 2: sbject: Extra"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, problem: str) -> None:
    file = tmp_path / "facts.jsonl"
    file.write_text(f"\n{line}\n")
    with pytest.raises(ConfigInvalid) as error:
        read_facts(file)
    assert problem in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_a_missing_file_of_facts_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match=r"cannot read facts from .*nothing\.jsonl"):
        read_facts(tmp_path / "nothing.jsonl")


def test_the_service_uses_the_file_and_its_own_keys_win(tmp_path: Path) -> None:
    write_settings(tmp_path / "memit.toml", FOUND)
    config = tmp_path / "factsyncd.toml"
    config.write_text('[source]\npath = "world.nt"\n[edit]\nsettings = "memit.toml"\nclamp = 0.7\n')
    overrides = load_settings(config).edit.overrides()
    assert MemitSettings.model_validate(overrides) == FOUND.settings.model_copy(update={"clamp": 0.7})
    assert [file.name for file in tmp_path.iterdir() if file.suffix == ".partial"] == []


@pytest.mark.parametrize("content", [None, "layers = ["])
def test_a_settings_file_that_cannot_be_read_is_named(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "memit.toml").write_text(content)
    config = tmp_path / "factsyncd.toml"
    config.write_text('[source]\npath = "world.nt"\n[edit]\nsettings = "memit.toml"\n')
    with pytest.raises(ConfigInvalid, match=r"edit\.settings: .*memit.toml cannot be read.*calibrate"):
        load_settings(config).edit.overrides()


def test_nothing_is_written_over_unasked(tmp_path: Path) -> None:
    there = tmp_path / "memit.toml"
    there.write_text("mine")
    with pytest.raises(ConfigInvalid, match="--force"):
        check_output(there, force=False)
    check_output(there, force=True)
    with pytest.raises(ConfigInvalid, match="is no directory"):
        check_output(tmp_path / "none" / "memit.toml", force=False)
    assert there.read_text() == "mine"


def test_the_command_says_what_it_does() -> None:
    shown = CliRunner().invoke(app, ["calibrate", "--help"]).output
    assert "Choose layers and strength" in shown
    assert "--facts" in shown
