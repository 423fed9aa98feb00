"""Targets in the configuration: what is taken and what is refused, in words that help."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from daemon.config import Settings, load_settings
from daemon.errors import ConfigInvalid
from daemon.targets import Secret

SOURCE = '[source]\npath = "facts.ttl"\n'
ONE_OF_EACH = """
[[publish.targets]]
type = "directory"
directory = "/srv/models"

[[publish.targets]]
type = "vllm"
name = "vllm-eu"
url = "http://vllm:8000/"
model = "kb"

[[publish.targets]]
type = "vllm_lora"
url = "http://vllm:8001"
model = "kb"
max_rank = 64

[[publish.targets]]
type = "sglang"
url = "http://sglang:30000"
model = "kb"
admin_key = { file = "/run/secrets/sglang" }

[[publish.targets]]
type = "webhook"
url = "https://example.org/hook"
secret = { env = "HOOK_SECRET" }

[[publish.targets]]
type = "huggingface"
repository = "kb/model"
token = { env = "HF_TOKEN" }
"""


def load(directory: Path, text: str) -> Settings:
    file = directory / "factsyncd.toml"
    file.write_text(SOURCE + text, "utf-8")
    return load_settings(file)


def test_every_kind_of_target(tmp_path: Path) -> None:
    publish = load(tmp_path, ONE_OF_EACH).publish
    assert publish.names == ("directory", "vllm-eu", "vllm_lora", "sglang", "webhook", "huggingface")
    asked = [target.asked_at and target.asked_at[:2] for target in publish.targets]
    assert asked == [
        None, ("http://vllm:8000", "kb"), ("http://vllm:8001", "kb"), ("http://sglang:30000", "kb"), None, None,
    ]  # fmt: skip


def test_without_targets_there_is_the_link(tmp_path: Path) -> None:
    settings = load(tmp_path, "")
    (only,) = settings.publish.targets
    assert settings.link_of(only) == tmp_path / "state" / "current"
    assert load(tmp_path, "[publish]\nkeep = 2\n").publish.names == ("directory",)


def test_targets_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    targets = [{"type": "vllm", "url": "http://vllm:8000", "model": "kb"}]
    monkeypatch.setenv("FACTSYNCD_PUBLISH__TARGETS", json.dumps(targets))
    assert load(tmp_path, "").publish.names == ("vllm",)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('type = "vllm"\nurll = 1', "publish.targets.0.vllm.url: "),
        ('type = "directory"\nlinc = 1', "unknown key publish.targets.0.directory.linc, did you mean link?"),
        ('type = "vlm"', "publish.targets.0: Input tag 'vlm' found using 'type' does not match"),
        ('url = "http://a"', "publish.targets.0: Unable to extract tag using discriminator 'type'"),
        ('type = "vllm"\nurl = "a:8000"\nmodel = "m"', "publish.targets.0.vllm.url: must begin with http:// or https://"),
        ('type = "sglang"\nurl = "http://u:p@a"\nmodel = "m"', "must not carry credentials"),
        ('type = "webhook"\nurl = "http://a"\nsecret = "hunter2"', "publish.targets.0.webhook.secret: "),
        ('type = "webhook"\nurl = "http://a"\nsecret = {}', "give either env (the name of a variable) or file"),
        ('type = "directory"\nask_url = "http://a"', "ask_url and model go together"),
        ('type = "directory"\nname = "A b"', "publish.targets.0.directory.name"),
        ('type = "directory"\n[[publish.targets]]\ntype = "directory"', "two targets are called directory"),
        ('type = "directory"\nkeep = 0', "publish.targets.0.directory.keep"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(ConfigInvalid) as refusal:
        load(tmp_path, f"[[publish.targets]]\n{text}\n")
    assert told in str(refusal.value)
    assert "hunter2" not in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_secret_is_read_when_it_is_used(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("one\n")
    secret = Secret(file=tmp_path / "key")
    assert secret.read() == "one"
    (tmp_path / "key").write_text("two\n")
    assert secret.read() == "two"
