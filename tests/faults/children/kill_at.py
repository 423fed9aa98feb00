"""Makes a process kill itself at a chosen point of a cycle; ``apply`` is called in the child before its command."""

from __future__ import annotations

import importlib
import os
import signal
from typing import Any

BEFORE, AFTER = "before", "after"

POINTS = {
    "in a page of the pull": ("daemon.pull", "_set_cursor", BEFORE),
    "in the pull before its end": ("daemon.pull", "advance", BEFORE),
    "in the diff before its commit": ("daemon.diff", "advance", AFTER),
    "in the batch before its commit": ("daemon.batch", "advance", AFTER),
    "in the preparation": ("editor.preparation", "save_file", AFTER),
    "in the value cache before the rename": ("editor.value_cache", "save_file", AFTER),
    "after the first value vectors": ("editor.value_cache", "ValueCache.put", AFTER),
    "before the staging": ("store.artifacts", "ArtifactStore.stage", BEFORE),
    "before the seal": ("store.artifacts", "ArtifactStore.seal", BEFORE),
    "in the seal before the rename": ("store.artifacts", "ArtifactStore._install", BEFORE),
    "after the seal": ("store.artifacts", "ArtifactStore.seal", AFTER),
    "in the edit before its commit": ("daemon.edit", "advance", AFTER),
    "in validate with the model loaded": ("daemon.respondent", "readings", BEFORE),
    "in validate before its commit": ("daemon.validate", "advance", AFTER),
    "in promote before its commit": ("daemon.promote", "advance", AFTER),
    "before the link's swap": ("daemon.publishers.directory", "point_current", BEFORE),
    "after the link's swap": ("daemon.publishers.directory", "point_current", AFTER),
    "after the delivery before its commit": ("daemon.deliver", "_settle", BEFORE),
    "after the delivery before the end": ("daemon.publish", "deliver", AFTER),
    "in publish before its commit": ("daemon.publish", "finish", AFTER),
}


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def apply(point: str) -> None:
    module, path, when = POINTS[point]
    owner: Any = importlib.import_module(module)
    *inside, name = path.split(".")
    for part in inside:
        owner = getattr(owner, part)
    real = getattr(owner, name)

    def deadly(*arguments: Any, **options: Any) -> Any:
        if when == AFTER:
            real(*arguments, **options)
        die()

    setattr(owner, name, deadly)
