from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from store import StateUnwritable, WriterBusy, WriterLock

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

StartChild = Callable[..., "subprocess.Popen[str]"]


def test_the_second_process_is_told_who_holds_the_lock(tmp_path: Path, start_child: StartChild) -> None:
    holder = start_child("hold_lock.py", tmp_path)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(WriterBusy, match=f"process {holder.pid} holds") as busy, WriterLock(tmp_path):
        pass
    assert busy.value.pid == holder.pid
    second = start_child("hold_lock.py", tmp_path)
    assert second.communicate(timeout=60)[0] == f"busy {holder.pid}\n"
    holder.communicate("let go\n", timeout=60)
    with WriterLock(tmp_path):
        assert (tmp_path / "writer.lock").read_text() == f"{os.getpid()}\n"


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path, start_child: StartChild) -> None:
    holder = start_child("hold_lock.py", tmp_path)
    assert holder.stdout.readline() == "held\n"
    holder.send_signal(signal.SIGKILL)
    holder.wait(timeout=60)
    assert (tmp_path / "writer.lock").read_text() == f"{holder.pid}\n"
    with WriterLock(tmp_path):
        assert (tmp_path / "writer.lock").read_text() == f"{os.getpid()}\n"


def test_two_competing_processes_are_never_inside_together(tmp_path: Path, start_child: StartChild) -> None:
    children = [start_child("compete_for_lock.py", tmp_path, 200) for _ in range(2)]
    for child in children:
        assert child.stdout.readline() == "ready\n"
    for child in children:
        child.stdin.write("go\n")
        child.stdin.flush()
    outputs = [child.communicate(timeout=60) for child in children]
    assert [child.returncode for child in children] == [0, 0], outputs
    assert sum(int(output) for output, _ in outputs) > 0, "they never met"


def test_the_lock_is_not_reentrant_and_is_freed_by_an_exception(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), WriterLock(tmp_path):
        with pytest.raises(WriterBusy) as busy, WriterLock(tmp_path):
            pass
        assert busy.value.pid == os.getpid()
        raise ZeroDivisionError
    lock = WriterLock(tmp_path)
    for _ in range(2):
        with lock:
            pass
    assert (tmp_path / "writer.lock").read_text() == ""


def test_a_holder_that_has_not_written_its_number_is_another_process(tmp_path: Path) -> None:
    with WriterLock(tmp_path) as held:
        held.path.write_text("")
        with pytest.raises(WriterBusy, match="another process holds") as busy, WriterLock(tmp_path):
            pass
        assert busy.value.pid is None


def test_a_missing_state_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(StateUnwritable, match="create it"), WriterLock(tmp_path / "absent"):
        pass
