"""Holds the writer lock of argv[1] until a line comes in, or is refused."""

import sys
from pathlib import Path

from store import WriterBusy, WriterLock

try:
    with WriterLock(Path(sys.argv[1])):
        print("held", flush=True)
        sys.stdin.readline()
except WriterBusy as busy:
    print(f"busy {busy.pid}", flush=True)
