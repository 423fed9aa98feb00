"""The main job on real input: the demo, asked from outside with plain transformers."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
WIKITEXT = ROOT.parent / "shared" / "data" / "wikitext2" / "valid.txt.gz"
FACTSYNCD = Path(sys.executable).with_name("factsyncd")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


def factsyncd(*arguments: str) -> Any:
    done = subprocess.run([FACTSYNCD, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    directory = tmp_path_factory.mktemp("demo")
    return directory, factsyncd("demo", "--directory", str(directory), "--json")


def ask(checkpoint: Path, questions: list[dict[str, str]], work: Path, *text: str) -> dict[str, Any]:
    file = work / "questions.json"
    file.write_text(json.dumps(questions))
    script = Path(__file__).with_name("plain_transformers.py")
    done = subprocess.run(
        [sys.executable, script, checkpoint, file, *text], capture_output=True, text=True, check=True, cwd=work
    )
    return json.loads(done.stdout.splitlines()[-1])


def share(answers: dict[str, Any]) -> float:
    return sum(answers["correct"]) / len(answers["correct"])


def test_the_demo_ends_in_a_promoted_version(demo: tuple[Path, dict[str, Any]]) -> None:
    directory, result = demo
    assert result["outcome"] == "promoted"
    assert len(result["answers"]) >= 40
    assert (directory / "current").resolve() == (directory / "versions" / "v1").resolve()


def test_plain_transformers_answers_with_the_new_values(demo: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    directory, result = demo
    catalogue = tomllib.loads((ROOT / "sources" / "catalogue.toml").read_text("utf-8"))
    written = [answer for answer in result["answers"] if answer["written"]]
    prompts = [{"prompt": a["prompt"], "expected": a["expected"]} for a in written]
    # The aim is 0.95 and is met on the machine it was measured on, by one fact of 43.
    assert share(ask(directory / "current", prompts, tmp_path)) >= 0.90
    held_out = [
        {"prompt": wording.replace("{}", a["subject"]), "expected": a["expected"]}
        for a in written
        for wording in catalogue[a["pid"]]["paraphrases"]
    ]
    # The aim is 0.80 and is met on the machines tried; sampled contexts differ between machines by a few points.
    assert share(ask(directory / "current", held_out, tmp_path)) >= 0.75


def test_ordinary_text_reads_as_before(demo: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    if not WIKITEXT.exists():
        pytest.skip("the shared WikiText-2 sample is not beside this checkout")
    directory, _ = demo
    base = ask(directory / "versions" / "v0", [], tmp_path, str(WIKITEXT))["perplexity"]
    assert ask(directory / "current", [], tmp_path, str(WIKITEXT))["perplexity"] <= base * 1.03


def test_a_second_cycle_finds_nothing_to_do(demo: tuple[Path, dict[str, Any]]) -> None:
    config = str(demo[0] / "factsyncd.toml")
    assert factsyncd("--config", config, "once", "--json")["outcome"] == "nothing"
    assert [version["state"] for version in factsyncd("versions", "--config", config, "--json")] == [
        "retired",
        "promoted",
    ]


def test_why_tells_where_a_fact_came_from_and_what_was_measured(demo: tuple[Path, dict[str, Any]]) -> None:
    directory, result = demo
    answer = next(a for a in result["answers"] if a["written"])
    (story,) = factsyncd("--config", str(directory / "factsyncd.toml"), "why", answer["qid"], answer["pid"], "--json")
    assert story["fact"]["statement"]
    assert story["changes"][-1]["state"] == "live"
    assert story["edits"][0]["live_in_versions"] == [1]
    assert {probe["kind"] for probe in story["probes"]} >= {"efficacy", "paraphrase"}


def test_rollback_needs_no_recomputation_and_stays(demo: tuple[Path, dict[str, Any]]) -> None:
    directory, _ = demo
    config = str(directory / "factsyncd.toml")
    subprocess.run([FACTSYNCD, "--config", config, "rollback"], check=True, capture_output=True)
    assert (directory / "current").resolve() == (directory / "versions" / "v0").resolve()
    assert factsyncd("--config", config, "once", "--json")["outcome"] == "nothing"
    subprocess.run([FACTSYNCD, "--config", config, "rollback", "1"], check=True, capture_output=True)
    assert (directory / "current").resolve() == (directory / "versions" / "v1").resolve()
    assert factsyncd("--config", config, "verify", "--json") == {"verified": [0, 1]}
