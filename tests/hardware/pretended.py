"""Loads of the simulated GPUs, to try the script out: they wait, and say what the simulator is told to show.

The simulator reads its script when a process begins, so that of each load is written before its sampler starts.
Shares are those of tests/simulators/nvml/load.c.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from piolet.samples.dataset import open_dataset

from tests.hardware import loads

SHARES = {"product": 0.9, "copy": 0.92, "spin": 0.0, "alternating": 0.91, "duty": 0.45}
SCRIPT = "gpu\nmemory_by_load 0\nload {}\n"
WORDS = {"product": "matmul 1000", "copy": "copy 1000", "spin": "spin 1000",
         "alternating": "matmul 2\nload copy 2", "duty": "matmul 1000 50 0.2"}  # fmt: skip


def mark(room: Path) -> str:
    """Return how a simulator named itself in any of the data sets, ''."""
    for path in sorted(room.glob("load-*")):
        try:
            if found := open_dataset(path).simulated:
                return found
        except Exception:  # noqa: BLE001 - a data set that was not finished has been told of already
            continue
    return ""


def main(name: str, seconds: float, path: str) -> None:
    """Wait, and say what was simulated."""
    begin = time.time()
    time.sleep(seconds)
    share = float(os.environ.get("PIOLET_PRETENDED_SHARE", SHARES[name]))
    one = {"what": name, "begin": begin, "end": time.time(), "flop": 0.0, "bytes": 0.0, "share": share}
    found = {"device": "simulated", "sms": 132, "capability": [9, 0], "segments": [one]}
    Path(path).write_text(json.dumps(found))


assert set(SHARES) == set(WORDS) == set(loads.NAMES)
if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), sys.argv[3])
