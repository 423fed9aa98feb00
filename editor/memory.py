"""How much memory an optimisation step takes, and how much there is.

A step of T packed tokens about U subjects peaks, beside the model, at

    T * per_token + U * per_subject + fixed    bytes

- ``per_token``: what the blocks above the last edited one keep for the way back, and the prefixes' keys and values. It
  depends on the architecture's own code, so it is counted on one subject instead of derived.
- ``per_subject``: the distribution that the KL term keeps to, ``4 * vocabulary``.
- ``fixed``: logits and what their softmax takes, ``LOGITS_AT_ONCE * vocabulary * (2 * itemsize + 3 * 4)``.

docs/benchmarks.md compares it with the peak measured at two sizes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable

CGROUP = Path("/sys/fs/cgroup")
USABLE = 0.5
"""Share of the free memory that a step may take: others live there too."""


@dataclass(frozen=True)
class StepMemory:
    """The formula's coefficients, in bytes."""

    per_token: int
    per_subject: int
    fixed: int

    def peak(self, tokens: int, subjects: int) -> int:
        """Bytes that a step takes beside the model."""
        return tokens * self.per_token + subjects * self.per_subject + self.fixed


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a device; on CPU no more than the control group allows."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = int(psutil.virtual_memory().available)
    limit, used = (_number(CGROUP / name) for name in ("memory.max", "memory.current"))
    return free if limit is None or used is None else min(free, max(limit - used, 0))


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text("ascii"))
    except (OSError, ValueError):  # no control group, or "max"
        return None


def kept_bytes(run: Callable[[], Tensor], weights: set[int]) -> int:
    """Bytes that a computation keeps for its way back, beside storages of ``weights`` (data pointers)."""
    sizes: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = run()
    total = sum(sizes.values())
    del result
    return total
