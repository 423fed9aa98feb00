"""vLLM with adapters: an exact one while the rank allows, full weights under an empty one above it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from publishing import Engine
from pytest_httpserver import HTTPServer
from safetensors.torch import load_file, save_file

from daemon.errors import PublishFailed
from daemon.publishers import Release
from daemon.publishers.adapters import Adapters
from daemon.publishers.vllm import VllmLoraPublisher
from daemon.targets import VllmLoraTarget

if TYPE_CHECKING:
    from collections.abc import Callable

NAME = "model.layers.{}.mlp.down_proj.weight"
WIDTH, INNER, MAX_RANK = 8, 16, 2


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def releases(tmp_path: Path) -> list[Release]:
    """A base, and versions whose updates have rank 1, 2 and 4."""
    torch.manual_seed(0)
    base = {NAME.format(layer): torch.randn(WIDTH, INNER) for layer in range(2)}
    made = []
    for number, rank in enumerate((0, 1, 2, 4)):
        directory = tmp_path / "versions" / f"v{number}"
        directory.mkdir(parents=True)
        update = torch.randn(WIDTH, rank) @ torch.randn(rank, INNER)
        save_file(base | {NAME.format(1): base[NAME.format(1)] + update}, directory / "model.safetensors")
        (directory / "config.json").write_text(json.dumps({"model_type": "llama"}))
        made.append(Release(number, f"{number:064}", directory, "k"))
    return made


@pytest.fixture
def engine(httpserver: HTTPServer) -> Engine:
    return Engine(httpserver)


@pytest.fixture
def publisher(engine: Engine, releases: list[Release], tmp_path: Path) -> Callable[..., VllmLoraPublisher]:
    def make(max_rank: int = MAX_RANK, **options: object) -> VllmLoraPublisher:
        chosen = VllmLoraTarget(name="lora", url=engine.url, model="kb", max_rank=max_rank, **options)
        return VllmLoraPublisher(chosen, Adapters(tmp_path / "adapters", "lora", releases[0], max_rank))

    return make


def adapter(tmp_path: Path, number: int) -> str:
    path = tmp_path / "adapters" / f"rank-{MAX_RANK}" / f"v{number}"
    return f'{{"lora_name":"kb","lora_path":"{path}","load_inplace":true}}'


def weights(release: Release) -> str:
    return f'{{"method":"reload_weights","kwargs":{{"weights_path":"{release.directory}"}}}}'


def test_an_adapter_is_loaded_under_a_stable_name_from_a_path_of_its_own(
    publisher: Callable[..., VllmLoraPublisher], engine: Engine, releases: list[Release], tmp_path: Path
) -> None:
    base, one, two, _ = releases
    publisher().publish(one, base)
    publisher().publish(two, one)
    publisher().publish(base, two)
    route = "POST /v1/load_lora_adapter"
    assert engine.requests == [(route, adapter(tmp_path, number)) for number in (1, 2, 0)]


def test_the_adapter_is_the_difference_of_the_weights(
    publisher: Callable[..., VllmLoraPublisher], releases: list[Release], tmp_path: Path
) -> None:
    publisher().publish(releases[2], releases[0])
    made = load_file(tmp_path / "adapters" / f"rank-{MAX_RANK}" / "v2" / "adapter_model.safetensors")
    (down,), (up,) = ([tensor for name, tensor in made.items() if part in name] for part in ("lora_A", "lora_B"))
    before, after = (load_file(releases[i].directory / "model.safetensors")[NAME.format(1)] for i in (0, 2))
    assert torch.allclose(up @ down, after - before, atol=1e-5)


def test_above_the_rank_full_weights_are_loaded_under_an_empty_adapter_and_given_back_afterwards(
    publisher: Callable[..., VllmLoraPublisher], engine: Engine, releases: list[Release], tmp_path: Path
) -> None:
    base, one, _, four = releases
    publisher().publish(one, base)
    engine.requests.clear()
    publisher().publish(four, one)
    publisher().publish(one, four)
    publisher().publish(base, one)
    pause, load, swap, resume = (
        "POST /pause?mode=wait", "POST /collective_rpc", "POST /v1/load_lora_adapter", "POST /resume",
    )  # fmt: skip
    assert engine.requests == [
        (pause, ""), (load, weights(four)), (swap, adapter(tmp_path, 3)), (resume, ""),
        (pause, ""), (load, weights(base)), (swap, adapter(tmp_path, 1)), (resume, ""),
        (swap, adapter(tmp_path, 0)),
    ]  # fmt: skip
    empty = load_file(tmp_path / "adapters" / f"rank-{MAX_RANK}" / "v3" / "adapter_model.safetensors")
    assert not any(tensor.any() for name, tensor in empty.items() if "lora_B" in name)


def test_a_kill_with_full_weights_is_remembered(
    publisher: Callable[..., VllmLoraPublisher], engine: Engine, releases: list[Release]
) -> None:
    base, one, _, four = releases
    engine.refuses["/v1/load_lora_adapter"] = 9
    with pytest.raises(PublishFailed):
        publisher().publish(four, one)
    engine.refuses.clear()
    engine.requests.clear()
    # Nobody knows what it has below the adapter: the base's weights are loaded again.
    publisher().publish(one, base)
    assert engine.asked == [
        "POST /pause?mode=wait", "POST /collective_rpc", "POST /v1/load_lora_adapter", "POST /resume",
    ]  # fmt: skip


def test_a_refused_adapter_is_followed_by_the_former_one(
    publisher: Callable[..., VllmLoraPublisher], engine: Engine, releases: list[Release], tmp_path: Path
) -> None:
    _, one, two, _ = releases
    engine.refuses["/v1/load_lora_adapter"] = 1
    with pytest.raises(PublishFailed):
        publisher().publish(two, one)
    assert [body for _, body in engine.requests] == [adapter(tmp_path, 2), adapter(tmp_path, 1)]


def test_a_refused_version_of_full_weights_is_followed_by_the_former_one(
    publisher: Callable[..., VllmLoraPublisher], engine: Engine, releases: list[Release], tmp_path: Path
) -> None:
    base, one, _, four = releases
    engine.refuses["/collective_rpc"] = 1
    with pytest.raises(PublishFailed):
        publisher().publish(four, one)
    assert engine.requests[1:] == [
        ("POST /collective_rpc", weights(four)), ("POST /collective_rpc", weights(base)),
        ("POST /v1/load_lora_adapter", adapter(tmp_path, 1)), ("POST /resume", ""),
    ]  # fmt: skip


def test_another_highest_rank_has_other_paths_and_mounts_are_the_engines(
    publisher: Callable[..., VllmLoraPublisher], engine: Engine, releases: list[Release]
) -> None:
    mounts = {"mount": Path("/models"), "adapter_mount": Path("/adapters")}
    publisher(max_rank=8, **mounts).publish(releases[3], None)
    publisher(max_rank=2, **mounts).publish(releases[3], None)
    sent = [json.loads(body) for _, body in engine.requests if body]
    assert [body["lora_path"] for body in sent if "lora_path" in body] == ["/adapters/rank-8/v3", "/adapters/rank-2/v3"]
    assert [body["kwargs"]["weights_path"] for body in sent if "kwargs" in body] == ["/models/v3"]


def test_an_adapter_is_made_once_and_again_where_it_is_damaged(
    publisher: Callable[..., VllmLoraPublisher], releases: list[Release], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    import daemon.publishers.adapters as module

    made: list[Path] = []
    real = module.write_peft_adapter
    monkeypatch.setattr(
        module, "write_peft_adapter", lambda base, version, *rest: (made.append(version), real(base, version, *rest))[1]
    )
    for _ in range(2):
        publisher().publish(releases[1], None)
    assert len(made) == 1
    (tmp_path / "adapters" / f"rank-{MAX_RANK}" / "v1" / "adapter_config.json").write_text("{}")
    publisher().publish(releases[1], None)
    assert len(made) == 2
