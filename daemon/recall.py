"""Recall: what an immutable version answered, read and wrote once is kept, and not asked of it again.

A cache: losing it, or a part of it, costs only time.
"""

from __future__ import annotations

import hashlib
import json
import os
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
import transformers

from editor import Reading

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from daemon.probes import Probe

VERSIONS = 6
"""Remembered at most: the base, the promoted version, candidates that may follow it, what a rollback may lead to."""
ANSWERS = 50_000
TEXTS = 8
"""Probes and sets of texts of one version; the oldest are forgotten first."""

Answer = tuple[bool, str | None]
"""Whether a probe was passed, and what was written for it where that was asked."""


def surroundings(device: torch.device) -> str:
    """What the last bits of a model's figures depend on beside the model: libraries, hardware, threads."""
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    return " ".join(
        (torch.__version__, transformers.__version__, device.type, kind, f"{torch.get_num_threads()} threads")
    )


class Recall:
    """One version's results in a file of their own, named by the version's digest and the surroundings.

    Args:
        directory: of all such files; made when something is kept.
        digest: of the version's artifact.
        around: as :func:`surroundings` gives it.
    """

    def __init__(self, directory: Path, digest: str, around: str) -> None:
        self._file = directory / f"{_digest([digest, around])}.json"
        self._answers: dict[str, Any] = {}
        self._readings: dict[str, Any] = {}
        self._texts: dict[str, Any] = {}
        try:
            content = json.loads(self._file.read_text("utf-8"))
            self._answers, self._readings, self._texts = (dict(content[name]) for name in _PARTS)
            os.utime(self._file)  # what is used is not forgotten
        except (OSError, ValueError, KeyError, TypeError):
            pass

    def answers(self, probes: Sequence[Probe], tokens: int) -> list[Answer | None]:
        """What is known of each probe.

        Args:
            probes: of any kind.
            tokens: longest text that it may have written.
        """
        known = (self._answers.get(_key(probe, tokens)) for probe in probes)
        return [None if answer is None else (bool(answer[0]), answer[1]) for answer in known]

    def readings(self, texts: Sequence[Sequence[int]]) -> list[Reading] | None:
        """How it read these texts."""
        known = self._readings.get(_digest(texts))
        return None if known is None else [Reading(*each) for each in known]

    def texts(self, openings: Sequence[str], tokens: int, seed: int) -> list[list[int]] | None:
        """What it wrote behind these openings: drawn in batches, so all of them belong together."""
        return self._texts.get(_digest([list(openings), tokens, seed]))

    def keep_answers(self, probes: Sequence[Probe], tokens: int, answers: Sequence[Answer]) -> None:
        """Remember what probes were answered."""
        keys = [_key(probe, tokens) for probe in probes]
        self._answers = _newest(self._answers, dict(zip(keys, map(list, answers), strict=True)), ANSWERS)
        self._save()

    def keep_readings(self, texts: Sequence[Sequence[int]], read: Sequence[Reading]) -> None:
        """Remember how texts were read."""
        rows = [[each.tokens, each.loss, each.divergence] for each in read]
        self._readings = _newest(self._readings, {_digest(texts): rows}, TEXTS)
        self._save()

    def keep_texts(self, openings: Sequence[str], tokens: int, seed: int, written: Sequence[Sequence[int]]) -> None:
        """Remember what was written."""
        key = _digest([list(openings), tokens, seed])
        self._texts = _newest(self._texts, {key: list(map(list, written))}, TEXTS)
        self._save()

    def _save(self) -> None:
        """Replace the file in one step, and delete those that were used longest ago."""
        directory = self._file.parent
        directory.mkdir(parents=True, exist_ok=True)
        partial = self._file.with_suffix(f".{os.getpid()}.partial")
        content = dict(zip(_PARTS, (self._answers, self._readings, self._texts), strict=True))
        partial.write_text(json.dumps(content, ensure_ascii=False), "utf-8")
        partial.replace(self._file)
        files = sorted(directory.glob("*.json"), key=lambda file: file.stat().st_mtime_ns)
        for file in files[:-VERSIONS]:
            file.unlink(missing_ok=True)


_PARTS = ("answers", "readings", "texts")


def _key(probe: Probe, tokens: int) -> str:
    """What an answer depends on. Not the kind: a new edit's probe is a former edit's in the next cycle."""
    return _digest([probe.prompt, probe.expected, probe.rival, tokens if probe.written else 0])


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _newest(known: Mapping[str, Any], more: Mapping[str, Any], most: int) -> dict[str, Any]:
    """Both, without the oldest of what is more than ``most``."""
    both = {key: value for key, value in known.items() if key not in more} | dict(more)
    return dict(islice(both.items(), max(0, len(both) - most), None))
