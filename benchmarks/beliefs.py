"""Beliefs about some thousand facts: facts per second, and the ratio to a naive scorer in the same run.

usage: beliefs.py [--facts N] [--naive-facts N] [--data DIRECTORY] [--json]

Half of the facts are real changes, half CounterFact's. Of each are wanted the log-probabilities of the new value, the
former one and three rivals, and the greedy answer under natural stop. The naive scorer makes one full pass of its own
for each prompt with a candidate, logits everywhere, and generates the answer with transformers, one fact at a time.

facts_per_second  all that is wanted of a fact
ratio_to_naive    the same over the naive scorer's rate
ratio_scoring     without the greedy answer on either side
same_beliefs      share of the naive scorer's facts of which both tell the same belief; same_answers: and first answer
worst_difference  of a log-probability, in nats
peak_MiB          highest resident size over that with the model loaded (Linux)
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import sys
import time
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch
from measures import SHARED, base_model

from daemon.beliefs import beliefs, inquiry_of, tell
from daemon.config import DiffSection
from daemon.questions import Question, Ring
from editor import LanguageModel, Reply, Score, fill, natural_stop, replies, scores
from editor.requests import probe_row

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

CHANGES, COUNTERFACT = "temporal_changes.jsonl.gz", "counterfact_slim.jsonl.gz"
SETTINGS = DiffSection()


def main() -> None:
    """Measure ours on all facts and the naive scorer on some of them."""
    arguments = _arguments()
    for name in (CHANGES, COUNTERFACT):
        if not (arguments.data / name).exists():
            sys.exit(f"no {name} in {arguments.data}: give its directory with --data")
    questions = facts(arguments.data, arguments.facts)
    if len(questions) < arguments.facts:
        sys.exit(f"only {len(questions)} facts in {arguments.data}: give --facts {len(questions)} or less")
    model = base_model()
    result = measured(model, questions, arguments.naive_facts, sys.stderr)
    for name, value in result.items():
        print(f"{name:24}{value}", file=sys.stderr if arguments.json else sys.stdout)
    if arguments.json:
        print(json.dumps(result))


def facts(directory: Path, wanted: int) -> list[Question]:
    """Questions about facts of both files in turn, one to a prompt, with rivals of the same property."""
    rows = [*_rows(directory)]
    rings = {pid: Ring((former, "item") for its_pid, _, _, former in rows if its_pid == pid) for pid, *_ in rows}
    questions: dict[str, Question] = {}
    for pid, prompt, expected, former in rows:
        rivals = rings[pid].following(prompt, "item", {expected, former})
        questions.setdefault(
            prompt, Question("", pid, prompt, expected, former, rivals=tuple(islice(rivals, SETTINGS.rivals)))
        )
    return [*questions.values()][:wanted]


def _rows(directory: Path) -> Iterator[tuple[str, str, str, str]]:
    """Property, prompt, new and former value."""
    with (
        gzip.open(directory / CHANGES, "rt", encoding="utf-8") as changes,
        gzip.open(directory / COUNTERFACT, "rt", encoding="utf-8") as counterfact,
    ):
        for line, other in zip(changes, counterfact, strict=False):
            row = json.loads(line)
            if row["old"] and row["new"]:
                yield row["pid"], fill(row["prompt"], row["prompt_subject"]), row["new"], row["old"]
            row = json.loads(other)
            if row["prompt"].count("{}") == 1:
                prompt = fill(row["prompt"], row["subject"])
                yield row["relation_id"], prompt, row["target_new"], row["target_true"]


def measured(model: LanguageModel, questions: Sequence[Question], naive_facts: int, log: Any) -> dict[str, Any]:
    """All figures."""

    def progress(stage: str, done: int, total: int) -> None:
        print(f"{stage} {done}/{total}", end="\n" if done == total else "\r", file=log, flush=True)

    replies(model, [inquiry_of(question) for question in questions[:4]])  # the first products of a process are slow
    some = questions[:: max(1, len(questions) // naive_facts)][:naive_facts]
    naive_scoring, naive_writing, theirs = _naive(model, some, progress)
    pairs = [(q.prompt, candidate) for q in questions[:: max(1, len(questions) // 400)] for candidate in _candidates(q)]
    asked = len({prompt for prompt, _ in pairs})
    before = psutil.Process().memory_info().rss
    Path("/proc/self/clear_refs").write_text("5", "ascii")  # forget the peak so far
    started = time.perf_counter()
    told = beliefs(model, 0, questions, SETTINGS, progress)
    seconds = time.perf_counter() - started
    peak = _peak()
    started = time.perf_counter()
    scores(model, pairs)
    scoring = (time.perf_counter() - started) / asked
    ours = dict(zip((question.prompt for question in questions), told, strict=True))
    return {
        "facts": len(questions),
        "threads": torch.get_num_threads(),
        "facts_per_second": round(len(questions) / seconds, 2),
        "naive_facts_per_second": round(1 / (naive_scoring + naive_writing), 3),
        "ratio_to_naive": round((naive_scoring + naive_writing) * len(questions) / seconds, 2),
        "ratio_scoring": round(naive_scoring / scoring, 2),
        "naive_facts": len(some),
        **_agreement(some, ours, theirs),
        "beliefs": dict(Counter(belief.belief for belief in told)),
        "peak_MiB": round((peak - before) / (1 << 20)),
    }


def _candidates(question: Question) -> tuple[str, ...]:
    return inquiry_of(question).candidates


def _agreement(some: Sequence[Question], ours: dict[str, Any], theirs: Sequence[Reply]) -> dict[str, float]:
    beliefs_same = answers_same = 0
    worst = 0.0
    for question, reply in zip(some, theirs, strict=True):
        belief = ours[question.prompt]
        holding, answer = tell(question, reply, SETTINGS.confident)
        beliefs_same += holding == belief.belief
        answers_same += (holding, answer) == (belief.belief, belief.answer)
        scored = {question.expected: belief.logprob_expected, question.former: belief.logprob_former} | belief.rivals
        naive = zip(_candidates(question), reply.scores, strict=True)
        worst = max(worst, *(abs(scored[name] - score.log_probability) for name, score in naive))
    return {
        "same_beliefs": round(beliefs_same / len(some), 4),
        "same_answers": round(answers_same / len(some), 4),
        "worst_difference": float(f"{worst:.1e}"),
    }


@torch.no_grad()
def _naive(model: LanguageModel, some: Sequence[Question], progress: Any) -> tuple[float, float, list[Reply]]:
    """Seconds a fact of scoring and of writing, and what comes out."""
    scoring = writing = 0.0
    out = []
    for done, question in enumerate(some, 1):
        started = time.perf_counter()
        found = tuple(_naive_score(model, question.prompt, candidate) for candidate in _candidates(question))
        scoring += time.perf_counter() - started
        started = time.perf_counter()
        out.append(Reply(found, *_naive_text(model, question.prompt)))
        writing += time.perf_counter() - started
        progress("naive", done, len(some))
    return scoring / len(some), writing / len(some), out


def _naive_score(model: LanguageModel, prompt: str, answer: str) -> Score:
    row = probe_row(model.tokenizer, prompt, answer)
    ids = torch.tensor([row.ids], device=model.device)
    log_probabilities = model.model(input_ids=ids, use_cache=False).logits.float().log_softmax(-1)[0]
    places = torch.arange(row.target, len(row.ids), device=ids.device)
    return Score(float(log_probabilities[places - 1, ids[0, places]].sum()), len(places), greedy=False)


def _naive_text(model: LanguageModel, prompt: str) -> tuple[str, float]:
    encoded = model.tokenizer(prompt, return_tensors="pt").to(model.device)
    out = model.model.generate(
        **encoded, max_new_tokens=SETTINGS.answer_tokens, do_sample=False, pad_token_id=0,
        return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    tokens = out.sequences[0, encoded["input_ids"].shape[1] :].tolist()
    text = model.tokenizer.decode(tokens, skip_special_tokens=True).split("\n", 1)[0]
    first = natural_stop(text)
    length = next(
        (n for n in range(1, len(tokens) + 1) if first and natural_stop(model.tokenizer.decode(tokens[:n])) == first), 0
    )
    logarithms = [
        float(logits[0].float().log_softmax(0)[token])
        for logits, token in zip(out.logits, tokens[:length], strict=False)
    ]
    return text, math.exp(sum(logarithms) / length) if length else 0.0


def _peak() -> int:
    status = Path("/proc/self/status").read_text("ascii")
    return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--facts", type=int, default=5000)
    parser.add_argument("--naive-facts", type=int, default=50, help="facts that the naive scorer is timed on")
    parser.add_argument("--data", type=Path, default=SHARED)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    return parser.parse_args()


if __name__ == "__main__":
    main()
