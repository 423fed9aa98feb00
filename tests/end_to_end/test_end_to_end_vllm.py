"""A running vLLM answers with an update at the SPARQL server, and with the former value after a rollback."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("live_engine.py")


@pytest.fixture(autouse=True)
def _asked_for(request: pytest.FixtureRequest) -> None:
    if "e2e" not in request.config.option.markexpr:
        pytest.skip("needs 3 GB of vLLM: run with -m e2e, or make e2e")


@pytest.mark.e2e
@pytest.mark.timeout(5400)
@pytest.mark.parametrize("target", ["vllm", "vllm_lora"])
def test_an_update_reaches_the_engine_and_a_rollback_takes_it_back(target: str) -> None:
    done = subprocess.run([sys.executable, SCRIPT, "--target", target], stdout=subprocess.PIPE, text=True, check=False)
    result = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == 0, result
    assert result["after"].startswith("Giorgia Meloni")
    assert result["rolled_back"] == result["before"]
    assert (result["failed"], result["requests"] > 0) == (0, True)
