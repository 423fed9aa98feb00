"""For each scenario and each k: a process that kills itself at its k-th file operation.

Leaves one directory per death, ``argv[1]/<scenario>/<k>/versions``, for the test to look at; the last k of a
scenario is the one that lived. One interpreter forks them all, because importing the store takes a second.
"""

import os
import pathlib
import signal
import sys
from pathlib import Path

from store import ArtifactStore

OLD = {"model.safetensors": b"old weights" * 100, "config.json": b"{}"}
NEW = {"model.safetensors": b"new weights" * 100, "config.json": b"{}", "shards/a.safetensors": b"more"}


def kill_at(k: int) -> None:
    """Make the k-th of the operations that change the disk the last one: cut short, or not begun."""
    calls = 0

    def counted(operation, *, halved=False):
        def wrapper(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == k:
                if halved:
                    path, content = args
                    operation(path, content[: len(content) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return operation(*args, **kwargs)

        return wrapper

    for name in ("fsync", "rename", "replace", "unlink", "rmdir", "mkdir", "chmod", "link"):
        setattr(os, name, counted(getattr(os, name)))
    pathlib.Path.write_bytes = counted(pathlib.Path.write_bytes, halved=True)


def seal(store: ArtifactStore, files: dict[str, bytes]) -> None:
    with store.stage(3) as staging:
        for name, content in files.items():
            (staging / name).parent.mkdir(exist_ok=True)
            (staging / name).write_bytes(content)
        store.seal(staging, 3, {"parent": 2})


SCENARIOS = {
    "fresh": (None, lambda store: seal(store, NEW)),
    "again": (NEW, lambda store: seal(store, NEW)),
    "other": (OLD, lambda store: seal(store, NEW)),
    "remove": (OLD, lambda store: store.remove(3)),
}


def run(scenario: str, top: Path) -> None:
    before, action = SCENARIOS[scenario]
    for k in range(1, 1000):
        store = ArtifactStore(top / str(k) / "versions")
        store.root.parent.mkdir(parents=True)
        if before is not None:
            seal(store, before)
        child = os.fork()
        if child == 0:
            try:
                kill_at(k)
                action(store)
            except BaseException:  # noqa: BLE001 - the child must not go on as a second parent
                os._exit(2)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status == 0:
            return
        if not os.WIFSIGNALED(status):
            sys.exit(f"{scenario} failed at {k}")
    sys.exit(f"{scenario} never ended")


if __name__ == "__main__":
    for name in SCENARIOS:
        run(name, Path(sys.argv[1]) / name)
