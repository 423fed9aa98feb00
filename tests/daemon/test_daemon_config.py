"""The configuration: what an operator mistypes is named in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from daemon.config import EditSection, load_settings
from daemon.errors import ConfigInvalid
from editor import MemitSettings

MINIMAL = '[source]\npath = "facts.ttl"\n'


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.startswith("FACTSYNCD_"):
            monkeypatch.delenv(name)


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "factsyncd.toml"
    file.write_text(text, "utf-8")
    return file


def refused(file: Path) -> str:
    with pytest.raises(ConfigInvalid) as caught:
        load_settings(file)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (MINIMAL + "[gate]\nefficacy_minn = 0.9\n", "unknown key gate.efficacy_minn, did you mean efficacy_min?"),
        (MINIMAL + "[gates]\nefficacy_min = 0.9\n", "unknown key gates, did you mean gate?"),
        (MINIMAL + "[schedule]\nzzzz = 1\n", "unknown key schedule.zzzz: known are interval_seconds"),
        (MINIMAL + "[edit.text]\nknd = 'file'\n", "unknown key edit.text.knd, did you mean kind?"),
        (MINIMAL + "[metrics]\nport = 70000\n", "metrics.port"),
        (MINIMAL + "[schedule]\ninterval_seconds = 0\n", "schedule.interval_seconds"),
        (MINIMAL + "[log]\nlevel = 'loud'\n", "log.level"),
        ("", "source"),
        ("[source]\nkind = 'embedded'\n", "source: kind embedded needs path"),
        (
            "[source]\nkind = 'endpoint'\nurl = 'https://x.org/sparql'\n",
            "source: kind endpoint needs url and user_agent",
        ),
        ("[source]\nkind = 'endpoint'\nuser_agent = 'a/1 (b; c)'\n", "source: kind endpoint needs url and user_agent"),
        ("[source]\nkind = 'ftp'\n", "source.kind"),
        (MINIMAL + "second_opinion = 'https://x.org/w/api.php'\n", "source: second_opinion needs user_agent"),
        (MINIMAL + "stamps = 'page'\n", "source.stamps"),
        (MINIMAL + "[settle]\npolls = 0\n", "settle.polls"),
        (MINIMAL + "[breaker]\nproperty_share = 0\n", "breaker.property_share"),
        ("source = 3\n", "source"),
        ("[source\n", "cannot be read as TOML"),
        ("[source]\npath = 'a'\npath = 'b'\n", "cannot be read as TOML"),
    ],
)
def test_a_mistake_in_the_file_is_one_line_that_names_it(tmp_path: Path, text: str, told: str) -> None:
    message = refused(write(tmp_path, text))
    assert told in message
    assert "factsyncd.toml" in message


def test_a_file_that_is_not_text_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "factsyncd.toml"
    file.write_bytes(b"\xff\xfe\x00")
    assert "cannot be read as TOML" in refused(file)


def test_a_missing_file_names_the_option_and_the_demo(tmp_path: Path) -> None:
    message = refused(tmp_path / "nowhere.toml")
    assert "nowhere.toml" in message
    assert "--config" in message
    assert "factsyncd demo" in message


def test_a_directory_in_place_of_the_file_is_one_line(tmp_path: Path) -> None:
    refused(tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("FACTSYNCD_GAT__EFFICACY_MIN", "0.5", "unknown section 'gat', did you mean gate?"),
        ("FACTSYNCD_CONFG", "x", "did you mean"),
        ("FACTSYNCD_GATE__EFICACY_MIN", "0.5", "did you mean efficacy_min?"),
        ("FACTSYNCD_GATE__EFFICACY_MIN", "high", "gate.efficacy_min"),
        ("FACTSYNCD_GATE", "{", "gate"),
    ],
)
def test_a_mistake_in_the_environment_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, told: str
) -> None:
    monkeypatch.setenv(name, value)
    message = refused(write(tmp_path, MINIMAL))
    if name != "FACTSYNCD_CONFG":  # nothing is near enough to be suggested
        assert told in message
    else:
        assert name in message


def test_the_environment_overrides_the_file_key_by_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACTSYNCD_GATE__EFFICACY_MIN", "0.5")
    monkeypatch.setenv("FACTSYNCD_SOURCE__PAGE_SIZE", "7")
    monkeypatch.setenv("FACTSYNCD_CONFIG", "not/a/section")
    file = write(tmp_path, MINIMAL + "[gate]\nefficacy_min = 0.9\nparaphrase_min = 0.7\n")
    settings = load_settings(file)
    assert settings.gate.efficacy_min == 0.5
    assert settings.gate.paraphrase_min == 0.7
    assert settings.source.page_size == 7
    assert settings.source.path == tmp_path / "facts.ttl"


def test_relative_paths_start_at_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "etc").mkdir()
    text = (
        '[state]\ndirectory = "../var"\n[model]\nbase = "./models/m"\n'
        '[source]\npath = "facts.ttl"\ncatalogue = "more.toml"\n[gate]\ntext = "gate.txt"\n'
        '[edit.text]\nkind = "file"\npath = "text.txt"\n'
        '[[publish.targets]]\ntype = "directory"\ndirectory = "../models"\nlink = "now"\n'
        '[[publish.targets]]\ntype = "webhook"\nurl = "http://h"\nsecret = { file = "secret" }\n'
    )
    write(tmp_path / "etc", text)
    monkeypatch.chdir(tmp_path)
    settings = load_settings(Path("etc/factsyncd.toml"))
    at = tmp_path / "etc"
    assert settings.state.directory.resolve() == (tmp_path / "var").resolve()
    assert settings.source.path == at / "facts.ttl"
    assert settings.source.catalogue == at / "more.toml"
    assert settings.gate.text == at / "gate.txt"
    assert settings.edit.text.path == at / "text.txt"
    assert Path(settings.model.base).is_absolute()
    directory, webhook = settings.publish.targets
    assert settings.link_of(directory).parent.resolve() == (tmp_path / "models").resolve()
    assert settings.link_of(directory).name == "now"
    assert webhook.secret.file == at / "secret"
    assert str(settings.database_location).endswith("var/factsyncd.sqlite")


def test_absolute_paths_and_names_stay_as_they_are(tmp_path: Path) -> None:
    text = '[state]\ndirectory = "/srv/state"\n[model]\nbase = "org/name@v1"\n[source]\npath = "/data/facts.ttl"\n'
    settings = load_settings(write(tmp_path, text))
    assert settings.state.directory == Path("/srv/state")
    assert settings.source.path == Path("/data/facts.ttl")
    assert settings.model.base == "org/name@v1"


def test_every_memit_setting_can_be_set() -> None:
    assert set(MemitSettings.model_fields) <= set(EditSection.model_fields)


ENDPOINT = "[source]\nkind = 'endpoint'\nurl = 'https://x.org/sparql'\nuser_agent = 'a/1 (b; c)'\n"


@pytest.mark.parametrize(
    ("text", "settling", "shares"),
    [
        (MINIMAL, (0, 1), (None, None)),
        (ENDPOINT, (3600, 2), (0.1, 0.05)),
        (ENDPOINT + "[settle]\nseconds = 0\npolls = 1\n", (0, 1), (0.1, 0.05)),
        (MINIMAL + "[settle]\nseconds = 60\n[breaker]\noverall_share = 0.5\n", (60, 1), (None, 0.5)),
    ],
)
def test_settling_and_breaker_follow_the_kind_of_the_source_unless_they_are_set(
    tmp_path: Path, text: str, settling: tuple[float, int], shares: tuple[float | None, float | None]
) -> None:
    settings = load_settings(write(tmp_path, text))
    seconds, polls = settings.settling
    assert (seconds.total_seconds(), polls) == settling
    assert settings.breaker_shares == shares


def test_a_filter_is_a_table_of_tables(tmp_path: Path) -> None:
    settings = load_settings(write(tmp_path, MINIMAL + "filters.P6 = { P31 = ['Q6256', 'Q515'] }\n"))
    assert settings.source.filters == {"P6": {"P31": ("Q6256", "Q515")}}
