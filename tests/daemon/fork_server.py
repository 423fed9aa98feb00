"""Runs ``factsyncd`` commands, each in its own process, without paying for the imports each time.

The interpreter imports the command line once and forks for every line of JSON on standard input:
``{"argv": [...], "env": {...}, "output": FILE, "errors": FILE, "before": [SCRIPT, ARGUMENT] or null}``.
``before`` names a script whose ``apply(argument)`` is called in the child first. The answer is the exit code.
"""

import json
import os
import runpy
import sys
import traceback

import transformers.models.llama.modeling_llama  # noqa: F401 - imported once, not in every child
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401

from daemon.cli import main


def child(request: dict) -> int:
    for stream, file in ((1, request["output"]), (2, request["errors"])):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    os.environ.update(request["env"])
    sys.argv = ["factsyncd", *request["argv"]]
    try:
        if request["before"]:
            script, argument = request["before"]
            runpy.run_path(script)["apply"](argument)
        main()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:  # noqa: BLE001 - what an interpreter does at its top
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            code = child(json.loads(line))
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        status = os.waitpid(pid, 0)[1]
        answers.write(f"{os.waitstatus_to_exitcode(status)}\n")
        answers.flush()
