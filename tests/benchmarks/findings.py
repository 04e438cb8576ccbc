"""Prints how long all detectors take over 64 GPUs x 24 h at 1 Hz: `python -m tests.benchmarks.findings [HOURS]`.

16 nodes of 4 GPUs: 5.5 million rows of GPUs, written as the layout has them. Time of one process, reading included; and
its peak of memory. Figures are noise around a training's, which no detector finds anything in.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
from piolet.observe import finding, writing
from piolet.observe.grid import Grid
from piolet.observe.reading import open_step

NODES, GPUS, START = 16, 4, 1_790_000_000_000_000_000
_SHARES = ("engine", "sm", "tensor", "dram", "utilisation")


def made(directory: Path, hours: float) -> int:
    """Write such a step and return its rows of GPUs."""
    draw, seconds = np.random.default_rng(1), int(hours * 3600)
    names = [f"nid{i:06d}" for i in range(NODES)]
    writing.write_meta(directory, {"job": "1", "step": "0", "start": START, "nodes": names, "interval": 1.0,
                                   "end": START + seconds * 10**9})  # fmt: skip
    end = START + 10**9 * np.arange(1, seconds + 1)
    pieces = []
    for node in range(NODES):
        owner = pa.DictionaryArray.from_arrays(np.full(GPUS * seconds, node, np.int32), names)
        levels = 0.9 * (1 + 0.02 * draw.standard_normal(GPUS * seconds))
        rows = {"time": np.tile(end, GPUS), "span": np.ones(GPUS * seconds), "node": owner,
                "gpu": np.repeat(np.arange(GPUS), seconds), "power": 600 * levels,
                "clock_sm": np.full(len(levels), 1900.0),
                "clock_events": np.zeros(len(levels)), "temperature": np.full(len(levels), 60.0)}  # fmt: skip
        rows |= {name: np.clip(levels * (1 - 0.1 * place), 0, 1) for place, name in enumerate(_SHARES)}
        pieces.append(writing.conformed("gpu", rows))
    writing.write_pieces(directory, "gpu", pieces)
    many = NODES * seconds
    owner = pa.DictionaryArray.from_arrays(np.repeat(np.arange(NODES, dtype=np.int32), seconds), names)
    host = {"time": np.tile(end, NODES), "span": np.ones(many), "node": owner}
    for name, level in (("cpu", 30.0), ("memory_anon", 1e11), ("file_write", 1e6), ("node_power", 2800.0)):
        host[name] = level * (1 + 0.02 * draw.standard_normal(many))
    for name, level in (("io_pressure", 0.01), ("cpu_pressure", 0.02), ("memory_limit", 4e11)):
        host[name] = np.full(many, level)
    writing.write_table(directory, "host", host)
    return int(NODES * GPUS * seconds)


def main(words: list[str]) -> int:
    """Print a table: each detector with the reading that falls to it, in the order in which they run."""
    with tempfile.TemporaryDirectory() as top:
        directory = Path(top)
        rows = made(directory, float(words[0]) if words else 24.0)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        begin, cpu = time.perf_counter(), time.process_time()
        grid = Grid(open_step(directory))
        print("| detector | wall clock | |\n|---|---|---|")
        for name in finding.OWN:
            at = time.perf_counter()
            said = finding.judged(finding.load(name), grid)
            print(f"| `{name}` | {time.perf_counter() - at:.2f} s | {said.state} {said.reason} |")
        took, used = time.perf_counter() - begin, time.process_time() - cpu
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(f"| all, of {rows:,} rows in {grid.bins} bins of {grid.width:.0f} s | **{took:.2f} s** | {used:.2f} s of "
              f"CPU; peak {most / 1e3:.0f} MB ({before / 1e3:.0f} MB while it was written) |")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
