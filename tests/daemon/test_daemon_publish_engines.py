"""What engines are sent, byte for byte, and what becomes of them when they refuse."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from publishing import Engine, prompt
from pytest_httpserver import HTTPServer

from daemon.confirm import About, Question, check
from daemon.errors import Disagrees, PublishFailed
from daemon.publishers import Release
from daemon.publishers.sglang import SglangPublisher
from daemon.publishers.vllm import VllmPublisher
from daemon.publishers.webhook import WebhookPublisher, signature
from daemon.targets import ConfirmSection, Secret, SglangTarget, VllmTarget, WebhookTarget

if TYPE_CHECKING:
    from collections.abc import Callable

DIGEST = "0123456789abcdef" * 4


def release(number: int) -> Release:
    return Release(number, DIGEST, Path(f"/state/versions/v{number}"), "vllm-7-0123456789ab")


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("ENGINE_KEY", "sesame\n")
    monkeypatch.setenv("ADMIN_KEY", "open")


@pytest.fixture
def engine(httpserver: HTTPServer) -> Engine:
    return Engine(httpserver)


@pytest.fixture
def vllm(engine: Engine) -> Callable[..., VllmPublisher]:
    return lambda **options: VllmPublisher(VllmTarget(name="vllm", url=engine.url, model="kb", **options))


@pytest.fixture
def sglang(engine: Engine) -> Callable[..., SglangPublisher]:
    return lambda **options: SglangPublisher(SglangTarget(name="sglang", url=engine.url, model="kb", **options))


LOAD_1, LOAD_2 = (
    f'{{"method":"reload_weights","kwargs":{{"weights_path":"/state/versions/v{number}"}}}}' for number in (1, 2)
)


def test_vllm_is_paused_loads_and_goes_on(engine: Engine, vllm: Callable[..., VllmPublisher]) -> None:
    vllm(api_key=Secret(env="ENGINE_KEY")).publish(release(2), release(1))
    assert engine.requests == [("POST /pause?mode=wait", ""), ("POST /collective_rpc", LOAD_2), ("POST /resume", "")]
    assert [headers["Authorization"] for headers in engine.headers] == ["Bearer sesame"] * 3
    assert engine.headers[1]["Content-Type"] == "application/json"
    assert engine.has == "v2"


def test_vllm_sees_the_versions_where_it_has_mounted_them(engine: Engine, vllm: Callable[..., VllmPublisher]) -> None:
    vllm(mount=Path("/models")).publish(release(2), None)
    assert json.loads(engine.requests[1][1])["kwargs"] == {"weights_path": "/models/v2"}
    assert "Authorization" not in engine.headers[1]


def test_vllm_that_refuses_gets_the_old_directory_again_and_goes_on(
    engine: Engine, vllm: Callable[..., VllmPublisher]
) -> None:
    engine.refuses["/collective_rpc"] = 1
    with pytest.raises(PublishFailed, match=r"/collective_rpc answered HTTP 500"):
        vllm().publish(release(2), release(1))
    assert engine.requests == [
        ("POST /pause?mode=wait", ""), ("POST /collective_rpc", LOAD_2), ("POST /collective_rpc", LOAD_1),
        ("POST /resume", ""),
    ]  # fmt: skip
    assert (engine.has, engine.paused) == ("v1", False)


def test_vllm_that_refuses_everything_goes_on_and_both_failures_are_told(
    engine: Engine, vllm: Callable[..., VllmPublisher]
) -> None:
    engine.refuses["/collective_rpc"] = 9
    with pytest.raises(PublishFailed, match="former version could not be loaded again either"):
        vllm().publish(release(2), release(1))
    assert engine.asked[-1] == "POST /resume"


def test_vllm_is_resumed_where_the_answer_to_the_pause_is_lost(
    engine: Engine, vllm: Callable[..., VllmPublisher]
) -> None:
    engine.refuses["/pause"] = 1
    with pytest.raises(PublishFailed):
        vllm().publish(release(2), release(1))
    assert engine.asked == ["POST /pause?mode=wait", "POST /resume"]


def test_resuming_is_tried_again(engine: Engine, vllm: Callable[..., VllmPublisher]) -> None:
    engine.refuses["/resume"] = 2
    vllm().publish(release(2), release(1))
    assert engine.asked[-3:] == ["POST /resume"] * 3
    assert not engine.paused


UPDATE_1, UPDATE_2 = (
    f'{{"model_path":"/state/versions/v{number}","weight_version":"v{number}-0123456789ab","flush_cache":true}}'
    for number in (1, 2)
)


def test_sglang_updates_and_names_its_version(engine: Engine, sglang: Callable[..., SglangPublisher]) -> None:
    publisher = sglang(api_key=Secret(env="ENGINE_KEY"), admin_key=Secret(env="ADMIN_KEY"))
    publisher.publish(release(2), release(1))
    assert engine.requests == [("POST /update_weights_from_disk", UPDATE_2), ("GET /model_info", "")]
    assert [headers["Authorization"] for headers in engine.headers] == ["Bearer open", "Bearer sesame"]
    assert publisher.holds(release(2))
    assert not publisher.holds(release(1))


@pytest.mark.parametrize("how", ["status", "success", "version"])
def test_sglang_that_fails_gets_the_old_directory_again(
    engine: Engine, sglang: Callable[..., SglangPublisher], how: str
) -> None:
    real = engine.routes["/update_weights_from_disk"]

    def refuse_the_new(body: dict[str, object]) -> object:
        if str(body["model_path"]).endswith("v1"):
            return real(body)
        # As SGLang does it: its own rollback has read the new path once more.
        return {"success": how == "version", "message": "Failed to update weights: size mismatch. Rolling back."}

    engine.routes["/update_weights_from_disk"] = refuse_the_new
    engine.refuses["/update_weights_from_disk"] = int(how == "status")
    with pytest.raises(PublishFailed):
        sglang().publish(release(2), release(1))
    updates = [body for route, body in engine.requests if route == "POST /update_weights_from_disk"]
    assert updates == [UPDATE_2, UPDATE_1]
    assert (engine.has, engine.weight_version) == ("v1", "v1-0123456789ab")


def test_a_webhook_is_signed_over_its_id_its_time_and_its_body(httpserver: HTTPServer, tmp_path: Path) -> None:
    httpserver.expect_request("/T0/hook", method="POST").respond_with_data("", 204)
    (tmp_path / "secret").write_text("whsec_" + base64.b64encode(b"shared").decode())
    target = WebhookTarget(name="hook", url=httpserver.url_for("/T0/hook"), secret=Secret(file=tmp_path / "secret"))
    WebhookPublisher(target).publish(release(2), release(1))
    WebhookPublisher(target).publish(release(2), release(1))
    (first, _), (second, _) = httpserver.log
    body = first.get_data()
    assert json.loads(body) == {
        "type": "version.published",
        "target": "hook",
        "version": {"number": 2, "digest": DIGEST, "directory": "/state/versions/v2"},
        "previous": {"number": 1, "digest": DIGEST, "directory": "/state/versions/v1"},
    }
    moment = first.headers["webhook-timestamp"]
    code = hmac.new(b"shared", f"vllm-7-0123456789ab.{moment}.".encode() + body, hashlib.sha256).digest()
    assert first.headers["webhook-signature"] == f"v1,{base64.b64encode(code).decode()}"
    assert first.headers["webhook-id"] == second.headers["webhook-id"] == "vllm-7-0123456789ab"


def test_the_signature_of_the_standard(tmp_path: Path) -> None:
    # The example of the specification, https://github.com/standard-webhooks/standard-webhooks
    assert (
        signature(
            "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330",
            b'{"test": 2432232314}',
        )
        == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    )  # fmt: skip


def test_errors_name_neither_the_secret_part_of_a_hook_nor_a_key(httpserver: HTTPServer, engine: Engine) -> None:
    engine.refuses["/services/T0KEN"] = 1
    hook = WebhookTarget(name="hook", url=f"{engine.url}services/T0KEN", secret=Secret(env="ENGINE_KEY"))
    with pytest.raises(PublishFailed) as failure:
        WebhookPublisher(hook).publish(release(2), None)
    assert "T0KEN" not in str(failure.value)
    assert "sesame" not in str(failure.value)
    assert "HTTP 500" in str(failure.value)


def test_a_missing_secret_is_told_before_anything_is_sent(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ENGINE_KEY")
    target = SglangTarget(name="s", url=engine.url, model="kb", api_key=Secret(env="ENGINE_KEY"))
    with pytest.raises(PublishFailed, match="environment variable ENGINE_KEY is empty or missing"):
        SglangPublisher(target).publish(release(2), None)
    assert engine.requests == []


ASKED = [
    Question(About.DIFFERENCE, prompt(3), "New 3"),
    Question(About.DIFFERENCE, prompt(4), "New 4"),
    Question(About.CONTROL, "Control 0 is", "Right 0"),
]


def test_an_engine_is_asked_by_greedy_decoding_under_its_served_name(engine: Engine) -> None:
    engine.has = "v2"
    target = VllmTarget(name="vllm", url=engine.url, model="kb", api_key=Secret(env="ENGINE_KEY"))
    check(target, ASKED, ConfirmSection())
    prompts = '["Country 3 is led by","Country 4 is led by","Control 0 is"]'
    body = f'{{"model":"kb","prompt":{prompts},"max_tokens":32,"temperature":0}}'
    assert engine.requests == [("POST /v1/completions", body)]
    assert engine.headers[0]["Authorization"] == "Bearer sesame"


def test_what_an_engine_says_instead_is_told(engine: Engine) -> None:
    target = VllmTarget(name="vllm", url=engine.url, model="kb")
    with pytest.raises(Disagrees, match=r"0 of 2 questions \(difference\).*'Country 3 is led by' it writes 'Old 3.'"):
        check(target, ASKED, ConfirmSection())


@pytest.mark.parametrize("answer", [{"choices": [{"index": 0, "text": "x"}]}, {"object": "error"}, ["x"]])
def test_an_answer_of_another_shape_is_no_disagreement(engine: Engine, answer: object) -> None:
    engine.routes["/v1/completions"] = lambda _: answer
    target = VllmTarget(name="vllm", url=engine.url, model="kb")
    with pytest.raises(PublishFailed) as failure:
        check(target, ASKED, ConfirmSection())
    assert not isinstance(failure.value, Disagrees)


def test_an_engine_that_is_down_or_hangs_or_floods_is_told(httpserver: HTTPServer) -> None:
    httpserver.expect_request("/pause").respond_with_data("x" * (2 << 20))
    httpserver.expect_request("/resume").respond_with_data("{}")
    flooding = VllmTarget(name="vllm", url=httpserver.url_for(""), model="kb")
    with pytest.raises(PublishFailed, match="more than"):
        VllmPublisher(flooding).publish(release(2), None)
    down = SglangTarget(name="s", url="http://127.0.0.1:9", model="kb", load_seconds=2)
    with pytest.raises(PublishFailed, match=r"127\.0\.0\.1:9/update_weights_from_disk cannot be reached"):
        SglangPublisher(down).publish(release(2), None)
