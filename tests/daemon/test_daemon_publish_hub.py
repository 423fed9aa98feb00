"""The Hugging Face Hub target against a server that keeps a repository as the documented API has it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from daemon.errors import PublishFailed
from daemon.publishers import Release
from daemon.publishers.hub import HubPublisher
from daemon.targets import HubTarget, Secret

REPOSITORY = "kb/model"
API = f"/api/models/{REPOSITORY}"


@dataclass
class Hub:
    """A repository: commits of files by path, tags, and large files by their SHA-256."""

    server: HTTPServer
    exists: bool = False
    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)
    tags: dict[str, int] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    refuse: str = ""

    def __post_init__(self) -> None:
        self.server.expect_request(re.compile(".*")).respond_with_handler(self.handle)

    @property
    def head(self) -> dict[str, bytes]:
        return self.commits[-1][1] if self.commits else {}

    def handle(self, request: Request) -> Response:
        raw = request.get_data()
        self.requests.append((request.method, request.path, request.headers.get("Authorization", "")))
        if self.refuse and self.refuse in request.path:
            return Response('{"error":"no"}', 403, content_type="application/json")
        route = (request.method, request.path)
        if route == ("POST", "/api/repos/create"):
            return self.create(json.loads(raw))
        if request.path.startswith(f"{API}/preupload/main"):
            return self.preupload(json.loads(raw))
        if request.path.startswith(f"{API}/tree/main"):
            return reply([{"type": "file", "path": n, "size": len(c), "oid": blob(c)} for n, c in self.head.items()])
        if request.path.startswith(f"{API}/paths-info/main"):
            return self.paths(request)
        if request.path.startswith(f"{API}/revision/"):
            return reply({"id": REPOSITORY, "sha": self.oid(), "siblings": [{"rfilename": n} for n in self.head]})
        if route == ("POST", f"/{REPOSITORY}.git/info/lfs/objects/batch"):
            return self.batch(json.loads(raw))
        if request.method == "PUT" and request.path.startswith("/store/"):
            assert hashlib.sha256(raw).hexdigest() == request.path.removeprefix("/store/")
            self.large[hashlib.sha256(raw).hexdigest()] = raw
            return Response("", 200)
        if request.path.startswith(f"{API}/commit/main"):
            return self.commit([json.loads(line) for line in raw.decode().splitlines()])
        if request.path.startswith(f"{API}/tag/"):
            return self.tag(request.path.removeprefix(f"{API}/tag/"), json.loads(raw))
        return Response(f'{{"error":"{request.method} {request.path}"}}', 404)

    def oid(self) -> str:
        return f"{len(self.commits):040x}"

    def create(self, body: dict[str, Any]) -> Response:
        assert (body["organization"], body["name"]) == ("kb", "model")
        status, self.exists = 409 if self.exists else 200, True
        return reply({"url": self.server.url_for(f"/{REPOSITORY}")}, status)

    def preupload(self, body: dict[str, Any]) -> Response:
        files = [
            {
                "path": file["path"], "shouldIgnore": False, "oid": self._known(file["path"]),
                "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
            }
            for file in body["files"]
        ]  # fmt: skip
        return reply({"files": files})

    def _known(self, path: str) -> str | None:
        content = self.head.get(path)
        if content is None:
            return None
        return hashlib.sha256(content).hexdigest() if path.endswith(".safetensors") else blob(content)

    def paths(self, request: Request) -> Response:
        wanted = request.form.getlist("paths") or json.loads(request.get_data() or b"{}").get("paths", [])
        return reply(
            [{"type": "file", "path": n, "size": len(c), "oid": blob(c)} for n, c in self.head.items() if n in wanted]
        )

    def batch(self, body: dict[str, Any]) -> Response:
        assert body["operation"] == "upload"
        objects = []
        for wanted in body["objects"]:
            entry = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.large:
                entry["actions"] = {"upload": {"href": self.server.url_for(f"/store/{wanted['oid']}")}}
            objects.append(entry)
        return reply({"transfer": "basic", "objects": objects}, kind="application/vnd.git-lfs+json")

    def commit(self, lines: list[dict[str, Any]]) -> Response:
        header, *operations = lines
        assert header["key"] == "header"
        files = dict(self.head)
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                files[value["path"]] = self.large[value["oid"]]
            else:
                assert operation["key"] == "deletedFile"
                del files[value["path"]]
        self.commits.append((header["value"]["summary"], files))
        return reply({"commitUrl": self.server.url_for(f"/{REPOSITORY}/commit/{self.oid()}"), "commitOid": self.oid()})

    def tag(self, revision: str, body: dict[str, Any]) -> Response:
        if body["tag"] in self.tags:
            return reply({"error": "Tag already exists"}, 409)
        assert int(revision, 16) == len(self.commits)
        self.tags[body["tag"]] = int(revision, 16)
        return reply({})


def reply(body: Any, status: int = 200, kind: str = "application/json") -> Response:
    return Response(json.dumps(body), status, content_type=kind)


def blob(content: bytes) -> str:
    """The object id that git gives a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@pytest.fixture
def hub(httpserver: HTTPServer, monkeypatch: pytest.MonkeyPatch) -> Hub:
    monkeypatch.setenv("no_proxy", "*")
    # What a daemon has that loads models from disk only; an upload is configured on purpose.
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("KB_TOKEN", "hf_sesame")
    return Hub(httpserver)


def release(tmp_path: Path, number: int, **files: bytes) -> Release:
    directory = tmp_path / f"v{number}"
    directory.mkdir()
    contents = {"model.safetensors": b"weights %d" % number, "config.json": b"{}"} | files
    for name, content in contents.items():
        (directory / name).write_bytes(content)
    return Release(number, f"{number}" * 64, directory, "k")


def publisher(hub: Hub, **options: Any) -> HubPublisher:
    endpoint = hub.server.url_for("")
    secret = Secret(env="KB_TOKEN")
    # Xet's own protocol is spoken by a library in machine code to servers of its own.
    chosen = HubTarget(name="hub", repository=REPOSITORY, token=secret, endpoint=endpoint, xet=False, **options)
    return HubPublisher(chosen)


def contents(version: Release) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in version.directory.iterdir()}


def test_a_version_is_one_commit_and_one_tag(hub: Hub, tmp_path: Path) -> None:
    one, two = release(tmp_path, 1, **{"extra.txt": b"gone later"}), release(tmp_path, 2)
    publisher(hub).publish(one, None)
    publisher(hub).publish(two, one)
    assert [summary for summary, _ in hub.commits] == [
        "factsyncd version 1 (111111111111)", "factsyncd version 2 (222222222222)",
    ]  # fmt: skip
    assert [files for _, files in hub.commits] == [contents(one), contents(two)]
    assert hub.tags == {"v1-111111111111": 1, "v2-222222222222": 2}
    assert {authorization for *_, authorization in hub.requests if authorization} == {"Bearer hf_sesame"}


def test_the_documented_routes_are_used(hub: Hub, tmp_path: Path) -> None:
    publisher(hub).publish(release(tmp_path, 1), None)
    weights = hashlib.sha256(b"weights 1").hexdigest()
    assert [(method, path) for method, path, _ in hub.requests if method != "GET"] == [
        ("POST", "/api/repos/create"),
        ("POST", f"{API}/preupload/main"),
        ("POST", f"/{REPOSITORY}.git/info/lfs/objects/batch"),
        ("PUT", f"/store/{weights}"),
        ("POST", f"{API}/commit/main"),
        ("POST", f"{API}/tag/{1:040x}"),
    ]


def test_doing_it_again_makes_no_commit(hub: Hub, tmp_path: Path) -> None:
    one = release(tmp_path, 1)
    publisher(hub).publish(one, None)
    publisher(hub).publish(one, None)
    assert len(hub.commits) == 1
    assert hub.tags == {"v1-111111111111": 1}


def test_a_kill_between_commit_and_tag_is_made_good(hub: Hub, tmp_path: Path) -> None:
    one = release(tmp_path, 1)
    hub.refuse = "/tag/"
    with pytest.raises(PublishFailed):
        publisher(hub).publish(one, None)
    hub.refuse = ""
    publisher(hub).publish(one, None)
    assert (len(hub.commits), hub.tags) == (1, {"v1-111111111111": 1})


def test_a_rollback_is_a_commit_and_the_tag_stays(hub: Hub, tmp_path: Path) -> None:
    one, two = release(tmp_path, 1), release(tmp_path, 2)
    for version in (one, two, one):
        publisher(hub).publish(version, None)
    assert hub.head == contents(one)
    assert (len(hub.commits), hub.tags) == (3, {"v1-111111111111": 1, "v2-222222222222": 2})


def test_a_refusal_is_one_line_without_the_token(hub: Hub, tmp_path: Path) -> None:
    hub.refuse = "/api/repos/create"
    with pytest.raises(PublishFailed, match="the upload to kb/model failed") as failure:
        publisher(hub).publish(release(tmp_path, 1), None)
    assert "sesame" not in str(failure.value)
    assert "\n" not in str(failure.value)
    assert hub.commits == []


def test_an_upload_is_bounded(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(PublishFailed, match=r"did not end in 0\.1 s: raise upload_seconds"):
        publisher(hub, upload_seconds=0.1).publish(release(tmp_path, 1), None)
