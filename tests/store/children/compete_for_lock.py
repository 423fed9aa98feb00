"""Takes the writer lock of argv[1] argv[2] times, and fails if somebody else is inside at the same time.

Says "ready", and begins when it is told to.
"""

import sys
import time
from pathlib import Path

from store import WriterBusy, WriterLock

state_dir, wanted = Path(sys.argv[1]), int(sys.argv[2])
inside = state_dir / "inside"
refused = 0
print("ready", flush=True)
sys.stdin.readline()
for _ in range(wanted):
    while True:
        try:
            with WriterLock(state_dir):
                inside.touch(exist_ok=False)
                time.sleep(0.002)
                inside.unlink()
            break
        except WriterBusy:
            refused += 1
            time.sleep(0.001)
print(refused)
