"""The validation loads: what a GPU is made to do, and what was done by their own account. Python 3.8, torch.

`loads.py NAME SECONDS FILE` leaves JSON in FILE:
    {"device": NAME, "sms": N, "capability": [MAJOR, MINOR],
     "segments": [{"what": NAME, "begin": seconds since 1970, "end": …, "flop": …, "bytes": …}, …]}
A load waits for the GPU every 50 ms or so, so that its segments end when the GPU's work does.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from typing import Any

SIZE = 8192
COPY_BYTES = 4 << 30
CHUNK_S = 0.05
HALVES = {"alternating": ("product", "copy", 2.0), "duty": ("product", "idle", 0.5)}
"""What takes turns, and for how long: a sample in which both fall has a score between, so that turns are long."""
NAMES = ("product", "copy", "spin", "alternating", "duty")


class Loads:
    """The work of each kind, on one device."""

    def __init__(self, torch: Any) -> None:
        self._torch = torch
        self.properties = torch.cuda.get_device_properties(0)
        # Random numbers: of zeros a GPU makes less heat, and has higher clocks.
        self._left, self._right = (torch.randn(SIZE, SIZE, device="cuda").to(torch.bfloat16) for _ in range(2))
        self._out = torch.empty_like(self._left)
        size = min(COPY_BYTES, torch.cuda.mem_get_info()[0] // 4)
        self._source, self._target = (torch.empty(size, dtype=torch.uint8, device="cuda") for _ in range(2))
        self._source.zero_()
        self._size = size
        self._work = {"product": self._product, "copy": self._copy, "spin": self._spin}
        self._batch = {name: self._calibrated(work) for name, work in self._work.items()}

    def _product(self) -> tuple[float, float]:
        self._torch.matmul(self._left, self._right, out=self._out)
        return 2.0 * SIZE**3, 0.0

    def _copy(self) -> tuple[float, float]:
        self._target.copy_(self._source)
        return 0.0, 2.0 * self._size

    def _spin(self) -> tuple[float, float]:
        self._torch.cuda._sleep(10_000_000)  # one thread that counts cycles
        return 0.0, 0.0

    def _calibrated(self, work: Any) -> int:
        """Return how many calls take about CHUNK_S."""
        work()
        self._torch.cuda.synchronize()
        begun = time.monotonic()
        work()
        self._torch.cuda.synchronize()
        return max(1, round(CHUNK_S / max(time.monotonic() - begun, 1e-5)))

    def segment(self, what: str, seconds: float) -> dict[str, Any]:
        """Do `what` for about so long and return what was done; 'idle' is nothing."""
        begin = time.time()
        flop = moved = 0.0
        if what == "idle":
            time.sleep(seconds)
        else:
            while time.time() - begin < seconds:
                for _ in range(self._batch[what]):
                    more_flop, more_bytes = self._work[what]()
                    flop, moved = flop + more_flop, moved + more_bytes
                self._torch.cuda.synchronize()
        return {"what": what, "begin": begin, "end": time.time(), "flop": flop, "bytes": moved}


def plan(name: str, seconds: float) -> list[tuple[str, float]]:
    """Return the parts of a load: what, and for how long."""
    if name not in HALVES:
        return [(name, seconds)]
    first, second, each = HALVES[name]
    return [(first, each), (second, each)] * max(1, round(seconds / (2 * each)))


def main(name: str, seconds: float, path: str) -> None:
    """Do the load and leave what it knows of itself."""
    torch = importlib.import_module("torch")
    loads = Loads(torch)
    segments = [loads.segment(what, part) for what, part in plan(name, seconds)]
    found = {
        "device": torch.cuda.get_device_name(0),
        "sms": loads.properties.multi_processor_count,
        "capability": list(torch.cuda.get_device_capability(0)),
        "segments": segments,
    }
    with open(path, "w", encoding="ascii") as file:
        json.dump(found, file)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), sys.argv[3])
