"""A world of twelve countries at two instants, a tiny model that knows the first, and a configuration over both."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from small_graph import Graph

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
# Behind everything else, so that no conftest of theirs is found instead of ours.
sys.path += [str(HERE.parent / room) for room in ("editor", "sources") if str(HERE.parent / room) not in sys.path]

COUNTRIES = {
    "Q222": ("Albania", "Tirana", "Edi Rama"),
    "Q41": ("Greece", "Athens", "Kyriakos"),
    "Q20": ("Norway", "Oslo", "Erna"),
    "Q34": ("Sweden", "Lund", "Stefan"),
    "Q33": ("Finland", "Turku", "Sanna"),
    "Q35": ("Denmark", "Aarhus", "Mette"),
    "Q29": ("Spain", "Madrid", "Pedro"),
    "Q38": ("Italy", "Rome", "Mario"),
    "Q36": ("Poland", "Warsaw", "Mateusz"),
    "Q28": ("Hungary", "Pest", "Viktor"),
    "Q45": ("Portugal", "Porto", "Costa"),
    "Q213": ("Czechia", "Brno", "Andrej"),
}
"""Label, capital (P36) and head of government (P6), at the first instant."""

CHANGES = {"Q34": "Magda", "Q38": "Giorgia", "Q36": "Donald", "Q213": "Petr"}
"""The new head of government, at the second instant."""
NEW_HEADS = {qid: f"Q{9007 + 10 * number}" for number, qid in enumerate(COUNTRIES) if qid in CHANGES}
"""Their items."""

PROPERTIES = {"P36": 1, "P6": 2}
BEFORE, AFTER = "2022-01-01T00:00:00", "2023-01-01T00:00:00"
MODEL = """\
[model]
base = "{base}"
device = "cpu"
threads = 1

[edit]
layers = [0, 1]
steps = 3
covariance_weight = 10.0
covariance_tokens = 600
contexts = 1
text = {{ kind = "file", path = "{text}" }}

[log]
level = "error"

[metrics]
port = 0
"""
LENIENT = """
[trials]
maximum = 1

[gate]
efficacy_min = 0.0
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
fluency_tokens = 12
"""
IMPOSSIBLE = LENIENT.replace("efficacy_min = 0.0", "efficacy_min = 1.1")


def turtle(*, after: bool) -> str:
    """The world as Wikidata's RDF."""
    return graph(after=after).turtle()


def graph(*, after: bool) -> Graph:
    """The world, to be added to."""
    from small_graph import Graph, at

    world = Graph(replicated=at(AFTER if after else BEFORE))
    for number, (qid, (label, *values)) in enumerate(COUNTRIES.items()):
        changed = after and qid in CHANGES
        revision, modified = (
            (2000 + number, f"2022-06-{number + 1:02}T00:00:00") if changed else (1000 + number, "2021-05-01T00:00:00")
        )
        world.item(qid, label, revision, modified)
        for pid, column in PROPERTIES.items():
            changes = changed and pid == "P6"
            value = CHANGES[qid] if changes else values[column - 1]
            item = f"Q{9000 + 10 * number + column + 5 * changes}"
            world.says(qid, pid, f"wd:{item}").label(item, value)
    return world


def sentences(qids: Iterable[str], held_out: int = 0) -> list[str]:
    """The first instant in the words of the edit prompts, and of the first held-out wordings."""
    from sources import load_catalogue

    relations = load_catalogue()
    return [
        f"{wording.replace('{}', COUNTRIES[qid][0])} {COUNTRIES[qid][column]}."
        for qid in qids
        for pid, column in PROPERTIES.items()
        for wording in (relations[pid].prompt, *relations[pid].paraphrases[:held_out])
    ]


def save_model(directory: Path, *, steps: int = 80) -> Path:
    """A tiny Llama as a checkpoint, taught by rote what the gate may probe: only what a base knows is a control."""
    import torch
    from tiny_models import tiny_llama, tiny_tokenizer

    from daemon.protection import protects

    model, tokenizer = tiny_llama(seed=7), tiny_tokenizer()
    known = sentences((qid for qid in COUNTRIES if not protects(qid) and qid not in CHANGES), held_out=2)
    encoded = tokenizer(known, return_tensors="pt", padding=True)
    labels = encoded["input_ids"].masked_fill(encoded["attention_mask"] == 0, -100)
    model.train()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several would only wait for each other on a busy machine
    optimiser = torch.optim.Adam(model.parameters(), lr=6e-3)
    for _ in range(steps):
        loss = model(input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"], labels=labels).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    torch.set_num_threads(threads)
    model.eval().save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def write_text(file: Path) -> Path:
    """Ordinary text for the covariance and the perplexity."""
    file.write_text(
        "\n".join(f"Year {year}: {text}" for year in range(1900, 1910) for text in sentences(COUNTRIES)), "utf-8"
    )
    return file


def write_config(file: Path, model: Path, text: Path, snapshot: Path, gate: str = LENIENT) -> Path:
    """A configuration whose state is beside it."""
    source = f'[source]\npath = "{snapshot}"\nproperties = ["P6", "P36"]\n\n'
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(source + MODEL.format(base=model, text=text) + gate, "utf-8")
    return file


@dataclass(frozen=True)
class Finished:
    """How a command ended."""

    code: int
    output: str
    errors: str

    @property
    def error_lines(self) -> list[str]:
        return self.errors.splitlines()

    @property
    def data(self) -> Any:
        return json.loads(self.output)


class Factsyncd:
    """``factsyncd`` commands as processes of their own, forked from one that has done the imports."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._server = subprocess.Popen(
            [sys.executable, HERE / "fork_server.py"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=scratch, env=environment(),
        )  # fmt: skip

    def __call__(
        self, *argv: object, env: dict[str, str] | None = None, before: tuple[Path, str] | None = None
    ) -> Finished:
        output, errors = self._scratch / "output", self._scratch / "errors"
        request = {
            "argv": [str(argument) for argument in argv], "env": env or {},
            "output": str(output), "errors": str(errors), "before": before and [str(before[0]), before[1]],
        }  # fmt: skip
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        code = int(self._server.stdout.readline())
        return Finished(code, output.read_text("utf-8"), errors.read_text("utf-8"))

    def close(self) -> None:
        self._server.communicate()


def environment() -> dict[str, str]:
    """The environment of a child: ours without ``FACTSYNCD_*``, with the repository importable."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("FACTSYNCD_")}
    return clean | {
        "PYTHONPATH": str(REPOSITORY),
        "COLUMNS": "200",
        "NO_COLOR": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
