"""What the tests of publishing share: a state with three versions, and engines that answer by what they loaded."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from prometheus_client import generate_latest
from pytest_httpserver import HTTPServer
from safetensors.torch import save_file
from small_world import write_config
from sqlmodel import col, select
from werkzeug import Request, Response

from daemon import outbox
from daemon.config import load_settings
from daemon.probes import Kind
from daemon.runtime import Runtime
from store.tables import (
    Belief,
    Change,
    ChangeState,
    Cycle,
    Edit,
    LedgerEntry,
    Outcome,
    Phase,
    ProbeResult,
    Publication,
    Version,
    VersionState,
)

if TYPE_CHECKING:
    from collections.abc import Callable

MOMENT = datetime(2022, 6, 1, tzinfo=UTC)
CONTROLS = {f"Control {number} is": f"Right {number}" for number in range(4)}
EDITS = {1: (1, 2), 2: (3, 4)}
"""The edits that each version is the first to have; version 0 is the base."""
EAGER = "retry_seconds = 0.001\nretry_max_seconds = 0.001\n"


def prompt(edit: int) -> str:
    return f"Country {edit} is led by"


def answers_of(version: int) -> dict[str, str]:
    """What a version answers to every prompt there is: its edits' values, what was before, and the controls."""
    written = {edit for number in range(1, version + 1) for edit in EDITS[number]}
    said = {prompt(e): f" New {e}." if e in written else f" Old {e}." for edits in EDITS.values() for e in edits}
    return said | {question: f" {answer}, and" for question, answer in CONTROLS.items()}


class Story:
    """v0 <- v1 (edits 1, 2) <- v2 (edits 1 to 4), all measured, v1 promoted and published, v2 to be promoted."""

    def __init__(self, directory: Path, template: Path, publish: str) -> None:
        config = write_config(directory / "factsyncd.toml", directory / "no", directory / "no", directory / "no.ttl")
        config.write_text(config.read_text("utf-8") + f"\n[publish]\n{publish}", "utf-8")
        self.runtime = Runtime(load_settings(config))
        self.runtime.make_state_directory()
        shutil.copyfile(template, directory / "state" / "factsyncd.sqlite")
        self.state = directory / "state"
        with self.runtime.database.transaction() as session:
            session.add(Cycle(phase=Phase.DONE, outcome=Outcome.NOTHING))
        for edit in (e for edits in EDITS.values() for e in edits):
            self._edit(edit)
        states = (VersionState.RETIRED, VersionState.PROMOTED, VersionState.CANDIDATE)
        for number, state in enumerate(states):
            self._version(number, state)

    def _edit(self, number: int) -> None:
        with self.runtime.database.transaction() as session:
            session.add(
                Change(
                    id=number, qid=f"Q{number}", pid="P6", subject_label=f"Country {number}", old_values=[],
                    new_values=[], revision=number, statement="s", modified_at=MOMENT, cycle_id=1,
                    state=ChangeState.LIVE,
                )
            )  # fmt: skip
            session.flush()
            session.add(
                Edit(
                    id=number, change_id=number, qid=f"Q{number}", pid="P6", prompt="{} is led by",
                    subject=f"Country {number}", target=f"New {number}", former=f"Old {number}",
                )
            )  # fmt: skip

    def _version(self, number: int, state: VersionState) -> None:
        store = self.runtime.artifacts
        with store.stage(number) as staging:
            save_file({"weight": torch.full((4,), float(number))}, staging / "model.safetensors")
            (staging / "config.json").write_text("{}")
            digest = store.seal(staging, number, {})
        written = [edit for first in range(1, number + 1) for edit in EDITS[first]]
        with self.runtime.database.transaction() as session:
            session.add(
                Version(
                    id=number, parent_id=number - 1 if number else None, state=state, base_digest="b",
                    settings_digest="s", digest=digest, path=f"versions/v{number}",
                )
            )  # fmt: skip
            session.flush()
            session.add_all(LedgerEntry(version_id=number, edit_id=edit) for edit in written)
            for edit in written:
                kind = Kind.EFFICACY if edit in EDITS[number] else Kind.RETENTION
                session.add(self._probe(number, kind, f"Q{edit}", prompt(edit), f"New {edit}"))
            for control, (question, answer) in enumerate(CONTROLS.items()):
                session.add(self._probe(number, Kind.CONTROL, f"Q{50 + control}", question, answer))
            for edit in EDITS.get(number + 1, ()):
                session.add(
                    Belief(
                        version_id=number, qid=f"Q{edit}", pid="P6", belief="outdated", expected=f"New {edit}",
                        answer=f"Old {edit}", logprob_expected=-5.0,
                    )
                )  # fmt: skip

    def _probe(self, version: int, kind: Kind, qid: str, asked: str, expected: str) -> ProbeResult:
        return ProbeResult(
            version_id=version, kind=kind.value, qid=qid, pid="P6", prompt=asked, expected=expected, answer=expected,
            correct=True, base_correct=kind is Kind.CONTROL,
        )  # fmt: skip

    def promote(self, number: int) -> None:
        """What a promotion does to versions and outbox."""
        with self.runtime.database.transaction() as session:
            for version in session.exec(select(Version).where(Version.state == VersionState.PROMOTED)):
                version.state = VersionState.RETIRED
            session.flush()
            session.get_one(Version, number).state = VersionState.PROMOTED
            outbox.enqueue(session, number, self.runtime.settings.publish.names)

    def rows(self, target: str) -> list[tuple[int, str]]:
        with self.runtime.database.read() as session:
            found = session.exec(select(Publication).where(Publication.target == target).order_by(col(Publication.id)))
            return [(row.version_id, row.state.value) for row in found]

    def newest(self, target: str) -> Publication:
        with self.runtime.database.read() as session:
            row = outbox.newest_of(session, target)
        assert row is not None
        return row

    def metric(self, name: str, **labels: str) -> float | None:
        return self.runtime.metrics.registry.get_sample_value(name, labels)

    def page(self) -> str:
        return generate_latest(self.runtime.metrics.registry).decode()


@dataclass
class Engine:
    """An engine over HTTP that answers by the version it has, and writes down every request.

    Attributes:
        has: the name of the directory whose answers it gives.
        requests: method and route, and the body where there is one.
        refuses: routes that answer with a status of 500; how often is counted down.
        deaf: whether it takes new weights and goes on with what it has.
    """

    server: HTTPServer
    has: str = "v1"
    requests: list[tuple[str, str]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    refuses: dict[str, int] = field(default_factory=dict)
    deaf: bool = False
    weight_version: str = "default"
    paused: bool = False
    routes: dict[str, Callable[[dict[str, Any]], Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.routes = {
            "/v1/completions": self._complete,
            "/pause": lambda _: self._pause(paused=True),
            "/resume": lambda _: self._pause(paused=False),
            "/collective_rpc": lambda body: self._load(body["kwargs"]["weights_path"]),
            "/v1/load_lora_adapter": lambda body: self._load(body["lora_path"]),
            "/update_weights_from_disk": self._update,
            "/model_info": lambda _: {"model_path": "x", "weight_version": self.weight_version},
        }
        self.server.expect_request(re.compile(".*")).respond_with_handler(self._handle)

    @property
    def url(self) -> str:
        return self.server.url_for("")

    @property
    def asked(self) -> list[str]:
        """Routes in order, without the questions."""
        return [route for route, _ in self.requests if not route.endswith("/v1/completions")]

    def _handle(self, request: Request) -> Response:
        route = request.full_path.rstrip("?")
        self.requests.append((f"{request.method} {route}", request.get_data(as_text=True)))
        self.headers.append(dict(request.headers))
        if self.refuses.get(request.path, 0) > 0:
            self.refuses[request.path] -= 1
            return Response('{"error": "no"}', 500, content_type="application/json")
        if request.path not in self.routes:
            return Response("not found", 404)
        body = json.loads(request.get_data() or b"{}")
        answer = self.routes[request.path](body)
        return answer if isinstance(answer, Response) else Response(json.dumps(answer), content_type="application/json")

    def _complete(self, body: dict[str, Any]) -> Any:
        said = answers_of(int(self.has.removeprefix("v")))
        # Out of order: choices are told apart by their index.
        return {"choices": [{"index": i, "text": said[p]} for i, p in reversed(list(enumerate(body["prompt"])))]}

    def _pause(self, *, paused: bool) -> Any:
        self.paused = paused
        return {"status": "paused" if paused else "resumed"}

    def _load(self, path: str) -> Any:
        if not self.deaf:
            self.has = Path(path).name
        return {"results": [None]}

    def _update(self, body: dict[str, Any]) -> Any:
        self._load(body["model_path"])
        self.weight_version = body["weight_version"]
        return {"success": True, "message": "Succeeded to update model weights.", "num_paused_requests": 0}


def target(kind: str, url: str, *lines: str) -> str:
    """A target's table."""
    return "\n".join(["[[publish.targets]]", f'type = "{kind}"', f'url = "{url}"', *lines, ""])
