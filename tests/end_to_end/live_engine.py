"""The whole way for real: an update at a SPARQL server, and a running vLLM that answers with it; then back again.

usage: live_engine.py [--target vllm|vllm_lora] [--work DIRECTORY]

Starts an Oxigraph server, vLLM on the CPU and ``factsyncd run``, asks vLLM without a pause meanwhile, and prints one
JSON object last. Exit code 1: no new answer, no old answer after the rollback, or a request that failed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from socket import create_server
from typing import TYPE_CHECKING, Any

import httpx2
from vllm_environment import ensure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).resolve().parents[2]
SNAPSHOT = ROOT / "sources" / "snapshots" / "before.ttl"
BIN = Path(sys.executable).parent
MODEL = "kb"
PROMPT, NEW = "The head of government of Italy is", "Giorgia Meloni"
PATIENCE_SECONDS = 900

CONFIG = """\
[state]
directory = "state"

[source]
kind = "endpoint"
url = "{endpoint}/query"
user_agent = "factsyncd-end-to-end/1 (https://factsyncd.example; tests@factsyncd.example)"
properties = ["P6", "P35", "P36", "P1308"]
lag_seconds = 0

# The update is believed at once, and one fact is edited: what shall be seen is the way, not the gate.
[settle]
seconds = 0
polls = 1

[edit]
contexts = 1
covariance_tokens = 6000
clamp = 0.9
loss_floor = 0.03
covariance_weight = 1000.0
shrinkage = 0.2

[gate]
efficacy_min = 0.5
paraphrase_min = 0.0
question_min = 0.0
reversal_min = 0.0
retention_max_drop = 1.0
neighbourhood_max_drop = 1.0
same_subject_max_drop = 1.0
control_max_drop = 1.0
perplexity_max_rise = 1e9
divergence_max = 1e9
fluency_max_drop = 1e9
repetition_max_rise = 1e9
minimum_probes = 1
fluency_texts = 4

[schedule]
interval_seconds = 5

[publish]
retry_seconds = 1
retry_max_seconds = 5

[[publish.targets]]
type = "directory"

[[publish.targets]]
type = "{target}"
name = "engine"
url = "{engine}"
model = "kb"
"""

UPDATE = """\
PREFIX wd: <http://www.wikidata.org/entity/>
PREFIX p: <http://www.wikidata.org/prop/>
PREFIX ps: <http://www.wikidata.org/prop/statement/>
PREFIX pq: <http://www.wikidata.org/prop/qualifier/>
PREFIX s: <http://www.wikidata.org/entity/statement/>
PREFIX wikibase: <http://wikiba.se/ontology#>
PREFIX schema: <http://schema.org/>
PREFIX xsd: <http://www.w3.org/2001/XMLSchema#>
DELETE { wd:Q38 schema:version ?version ; schema:dateModified ?modified .
         <http://www.wikidata.org> schema:dateModified ?replicated .
         ?old wikibase:rank ?rank . }
INSERT { wd:Q38 schema:version 2400000000 ; schema:dateModified "NOW"^^xsd:dateTime ; p:P6 s:Q38-new .
         <http://www.wikidata.org> schema:dateModified "NOW"^^xsd:dateTime .
         ?old wikibase:rank wikibase:NormalRank ; pq:P582 "2022-10-22T00:00:00Z"^^xsd:dateTime .
         s:Q38-new wikibase:rank wikibase:PreferredRank ; ps:P6 wd:Q451791 ;
                   pq:P580 "2022-10-22T00:00:00Z"^^xsd:dateTime . }
WHERE  { wd:Q38 schema:version ?version ; schema:dateModified ?modified ; p:P6 ?old .
         <http://www.wikidata.org> schema:dateModified ?replicated .
         ?old ps:P6 wd:Q294460 ; wikibase:rank ?rank . }
"""


@dataclass
class Client:
    """Somebody who uses the engine all the time.

    Attributes:
        url: of the engine.
        answers: when each came (monotonic seconds), and the text.
        failures: what went wrong.
    """

    url: str
    answers: list[tuple[float, str]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    _ended: threading.Event = field(default_factory=threading.Event)

    def ask(self) -> str:
        body = {"model": MODEL, "prompt": PROMPT, "max_tokens": 8, "temperature": 0}
        reply = httpx2.post(f"{self.url}/v1/completions", json=body, timeout=300, trust_env=False)
        reply.raise_for_status()
        return str(reply.json()["choices"][0]["text"]).strip()

    @contextmanager
    def at_work(self) -> Iterator[None]:
        thread = threading.Thread(target=self._work)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()

    def _work(self) -> None:
        while not self._ended.is_set():
            try:
                text = self.ask()
                self.answers.append((time.monotonic(), text))
            except (httpx2.HTTPError, KeyError, ValueError) as error:
                self.failures.append(repr(error))
            self._ended.wait(0.1)

    def first(self, after: float, wanted: Callable[[str], bool]) -> float | None:
        """When an answer as wanted first came after a moment."""
        return next((moment for moment, text in list(self.answers) if moment > after and wanted(text)), None)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", choices=["vllm", "vllm_lora"], default="vllm")
    parser.add_argument("--work", type=Path, default=ROOT / ".e2e")
    options = parser.parse_args()
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    say(f"preparing vLLM in {work / 'vllm'} (about 3 GB at the first time)")
    vllm = ensure(work / "vllm")
    run = work / "run"
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir()
    with ExitStack() as stack:
        result = go(stack, run, vllm, options.target)
    sys.stdout.write(json.dumps(result) + "\n")
    good = result["seconds_to_new_answer"] and result["seconds_to_old_answer"] and not result["failed"]
    return 0 if good else 1


def go(stack: ExitStack, run: Path, vllm: Path, target: str) -> dict[str, Any]:
    """All of it, in an empty directory."""
    endpoint, engine = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
    config = run / "factsyncd.toml"
    config.write_text(CONFIG.format(endpoint=endpoint, engine=engine, target=target))
    subprocess.run([BIN / "oxigraph", "load", "-l", run / "graph", "-f", SNAPSHOT], check=True, capture_output=True)
    serve = [BIN / "oxigraph", "serve", "-l", run / "graph", "-b", endpoint.removeprefix("http://")]
    stack.enter_context(started("oxigraph", serve, run))
    wait_for(lambda: answers(f"{endpoint}/query?query=ASK%7B%7D"), "Oxigraph")

    say("first load: the base becomes version 0, and facts are recorded")
    factsyncd(config, "once")
    stack.enter_context(started("vllm", serve_command(vllm, run / "state", engine, target), run, VLLM_ENVIRONMENT))
    say("waiting for vLLM")
    wait_for(lambda: answers(f"{engine}/health"), "vLLM")
    daemon = stack.enter_context(started("factsyncd", [BIN / "factsyncd", "--config", config, "run"], run))
    wait_for(lambda: published(config) == (0, "delivered"), "the publication of version 0")

    client = Client(engine)
    before = client.ask()
    say(f"vLLM answers {before!r}; posting the update")
    with client.at_work():
        posted = time.monotonic()
        update(endpoint)
        new = waited(lambda: client.first(posted, lambda text: text.startswith(NEW)), "the new answer")
        after = client.ask()
        wait_for(lambda: published(config) == (1, "delivered"), "the confirmation")
        say(f"vLLM answers {after!r}; rolling back")
        daemon.send_signal(signal.SIGTERM)
        daemon.wait(60)
        asked = time.monotonic()
        factsyncd(config, "rollback")
        old = waited(lambda: client.first(asked, lambda text: text == before), "the old answer")
        rolled_back = client.ask()
    return {
        "target": target, "prompt": PROMPT, "before": before, "after": after, "rolled_back": rolled_back,
        "requests": len(client.answers) + len(client.failures), "failed": len(client.failures),
        "failures": client.failures[:3], "seconds_to_old_answer": round(old - asked, 2) if old else None,
        "seconds_to_new_answer": round(new - posted, 2) if new else None,
    }  # fmt: skip


VLLM_ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_SERVER_DEV_MODE": "1",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}


def serve_command(vllm: Path, state: Path, engine: str, target: str) -> list[str | Path]:
    """vLLM over what is promoted, or over the base under adapters."""
    port = engine.rsplit(":", 1)[1]
    common = ["--host", "127.0.0.1", "--port", port, "--max-model-len", "512", "--enforce-eager", "--dtype", "float32"]
    if target == "vllm_lora":
        lora = ["--served-model-name", "base", "--enable-lora", "--max-lora-rank", "256"]
        return [vllm, "serve", state / "versions" / "v0", *common, *lora]
    return [vllm, "serve", state / "current", *common, "--served-model-name", MODEL]


@contextmanager
def started(
    name: str, command: list[Any], run: Path, environment: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A process for the time of a block, with its output in a file; the end of the file is shown if the block fails."""
    log = run / f"{name}.log"
    with log.open("wb") as file:
        # A group of its own: vLLM has children.
        process = subprocess.Popen(
            command, stdout=file, stderr=file, env=os.environ | {"no_proxy": "*"} | (environment or {}),
            start_new_session=True, cwd=run,
        )  # fmt: skip
    try:
        yield process
    except BaseException:
        say(f"the end of {log}:\n{log.read_text('utf-8', 'replace')[-3000:]}")
        raise
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(10)


def factsyncd(config: Path, *arguments: str) -> str:
    command = [BIN / "factsyncd", *arguments, "--config", config]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"no_proxy": "*"}, cwd=config.parent
    )
    if done.returncode != 0:
        raise SystemExit(f"factsyncd {' '.join(arguments)}: exit code {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout


def published(config: Path) -> tuple[int, str] | None:
    """The newest publication to the engine, and its state."""
    rows = json.loads(factsyncd(config, "status", "--json"))["publications"]
    newest = next((row["newest"] for row in rows if row["target"] == "engine"), None)
    if newest is not None and newest["state"] == "failed":
        raise SystemExit(f"the engine disagrees: {newest['detail']}")
    return None if newest is None else (newest["version_id"], newest["state"])


def update(endpoint: str) -> None:
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    reply = httpx2.post(
        f"{endpoint}/update", content=UPDATE.replace("NOW", now), trust_env=False,
        headers={"Content-Type": "application/sparql-update"}, timeout=30,
    )  # fmt: skip
    reply.raise_for_status()


def answers(url: str) -> bool:
    try:
        return httpx2.get(url, timeout=5, trust_env=False).is_success
    except httpx2.HTTPError:
        return False


def waited(look: Callable[[], float | None], what: str) -> float | None:
    """What a look finds in time, else None."""
    end = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < end:
        if (found := look()) is not None:
            return found
        time.sleep(0.1)
    say(f"no sign of {what} in {PATIENCE_SECONDS} s")
    return None


def wait_for(there: Callable[[], bool], what: str) -> None:
    if waited(lambda: time.monotonic() if there() else None, what) is None:
        raise SystemExit(f"{what} did not come")


def free_port() -> int:
    with create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def say(text: str) -> None:
    sys.stderr.write(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
