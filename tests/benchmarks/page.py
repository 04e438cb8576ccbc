"""How soon the page of a job is there: a step of a day on 1,024 GPUs, in a headless Chromium that has not run before.

    python -m tests.benchmarks.page [--rounds 9] [--gpus 1024] [--keep FILE | --of FILE]

Times are since the browser began to load the file, and the median of the rounds; each has a fresh profile.
"""

from __future__ import annotations

import argparse
import gzip
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
from piolet.observe import layout, reading, writing
from piolet.observe.page import html

from tools import browser

GPUS_PER_NODE, DAY, START = 4, 86_400, 1_796_000_000 * 10**9
AIMS = {"first": 1.0, "lines": 1.5, "heat": 2.5}
_GPU = {
    **dict.fromkeys(("utilisation", "engine", "sm", "occupancy", "tensor", "dram"), (0.6, 0.15)),
    **dict.fromkeys(("fp64", "fp32", "fp16"), (0.05, 0.02)),
    **{f"{link}_{way}": (2e10, 5e9) for link in ("nvlink", "pcie") for way in ("tx", "rx")},
    "memory_used": (6e10, 4e9),
    "power": (480.0, 60.0),
    "temperature": (58.0, 4.0),
    "clock_sm": (1700.0, 60.0),
}
_HOST = {
    "cpu": (20.0, 3.0),
    "memory": (2e11, 1e10),
    "memory_anon": (9e10, 3e9),
    "node_power": (2900.0, 200.0),
    "cpu_pressure": (0.05, 0.02),
    "memory_pressure": (0.01, 0.005),
    "io_pressure": (0.08, 0.04),
    "file_read": (4e8, 5e7),
    "file_write": (4e7, 3e7),
}


def day(directory: Path, gpus: int) -> reading.StepData:
    """Write a day of so many GPUs: the roll-up, and of the rest what the page draws; sums are noise about a phase."""
    nodes = [f"nid{number:06}" for number in range(gpus // GPUS_PER_NODE)]
    draw = np.random.default_rng(1)
    writing.write_pieces(directory, "rollup", _rollup(nodes, draw))
    times = START + np.tile(np.arange(60, DAY + 1, 60), len(nodes)) * 10**9
    each = DAY // 60
    common = {"time": times, "span": np.full(len(times), 60.0), "node": np.repeat(nodes, each)}
    noise = np.clip(draw.normal(1, 0.2, len(times)), 0.1, None)
    for mount in ("/scratch",):
        rows = {"mount": [mount] * len(times), "kind": ["lustre"] * len(times), "scope": ["node"] * len(times)}
        writing.write_table(
            directory, "io", common | rows | {"read": 4e8 * noise, "write": 5e7 * noise, "wait": 0.004 * noise}
        )
    rows = {"port": ["hsn0"] * len(times), "kind": ["cxi"] * len(times)}
    moved = {"rx": 7e9 * noise, "tx": 7e9 * noise, "retries": 0 * noise, "errors": 0 * noise}
    writing.write_table(directory, "net", common | rows | moved)
    told = START + np.arange(300, DAY, 30) * 10**9
    loss = 2 + 6 * np.exp(-np.arange(len(told)) / 500) + draw.normal(0, 0.03, len(told))
    writing.write_table(directory, "marks", {"time": told, "name": ["loss"] * len(told), "value": loss})
    when = START + np.sort(draw.integers(0, DAY, 300)) * 10**9
    events = {"node": draw.choice(nodes, 300), "kind": ["gpu.throttled"] * 300, "severity": ["warning"] * 300}
    writing.write_table(directory, "events", events | {"time": when, "text": ["the clock is held back: thermal"] * 300})
    device = {"name": "NVIDIA H100 80GB HBM3", "power_limit": 700.0}
    writing.write_meta(
        directory,
        {
            "job": "1",
            "step": "0",
            "name": "day",
            "user": "alice",
            "nodes": nodes,
            "start": START,
            "end": START + DAY * 10**9,
            "state": "COMPLETED",
            "simulated": "tests/benchmarks/page.py",
            "interval": 10.0,
            "devices": {node: [device] * GPUS_PER_NODE for node in nodes},
        },
    )
    return reading.open_step(directory)


def _rollup(nodes: list[str], draw: Any) -> Iterator[pa.Table]:
    phase = np.where(np.arange(layout.BINS) % 97 < 9, 0.25, 1.0)
    for names, per_node, is_host in ((_GPU, GPUS_PER_NODE, False), (_HOST, 1, True)):
        lanes = len(nodes) * per_node
        gpu = np.full(lanes, layout.HOST) if is_host else np.tile(np.arange(per_node), len(nodes))
        for name, (mean, spread) in names.items():
            values = np.clip(mean * phase + draw.normal(0, spread / 3, (lanes, layout.BINS)), 0, None).ravel()
            most = values + spread
            yield writing.conformed(
                "rollup",
                {
                    "bin": np.tile(np.arange(layout.BINS, dtype=np.uint16), lanes),
                    "bins": np.ones(len(values), np.uint16),
                    "node": np.repeat(np.repeat(nodes, per_node), layout.BINS),
                    "gpu": np.repeat(gpu, layout.BINS).astype(np.int16),
                    "quantity": np.full(len(values), name),
                    "mean": values.astype(np.float32),
                    "least": np.clip(values - spread, 0, None).astype(np.float32),
                    "most": (np.minimum(most, 1) if mean < 1 else most).astype(np.float32),
                    "covered": np.ones(len(values), np.float32),
                },
            )


def parts(page: bytes) -> dict[str, int]:
    """Return the bytes that the page's parts have when they are compressed."""
    text = page.decode()
    (first,) = re.findall(r"<script type=application/json id=data>.*?</script>", text)
    maps = re.findall(r"<script type=application/json id=map\d+>.*?</script>", text)
    rest = text
    for part in (first, *maps):
        rest = rest.replace(part, "")
    pieces = {"HTML and script": rest, "first data": first, "other maps": "".join(maps), "all": text}
    return {name: len(gzip.compress(piece.encode(), mtime=0)) for name, piece in pieces.items()}


def _made(gpus: int) -> bytes:
    with tempfile.TemporaryDirectory() as room:
        step = day(Path(room), gpus)
        began, busy = time.monotonic(), time.process_time()
        page = html.render(step)
        took, busy = time.monotonic() - began, time.process_time() - busy
    print(
        f"made in {took:.1f} s ({busy:.1f} s of a processor) of the roll-up of {gpus} GPUs; {len(page) / 1000:.0f} kB"
    )
    return page


def main() -> int:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--gpus", type=int, default=1024)
    parser.add_argument("--keep", type=Path, help="keep the page there")
    parser.add_argument("--of", type=Path, metavar="FILE", help="a page that was kept")
    args = parser.parse_args()
    program = browser.chromium()
    if program is None:
        print("chromium is not installed", file=sys.stderr)
        return 1
    page = args.of.read_bytes() if args.of else _made(args.gpus)
    if args.keep:
        args.keep.write_bytes(page)
    for name, size in parts(page).items():
        print(f"  {name}: {size / 1000:.1f} kB compressed")
    found = [browser.shown(program, page.decode()) for _ in range(args.rounds)]
    for name in ("first", "lines", "heat", "process"):
        values = sorted(getattr(each, name) for each in found)
        aim = f"   aim {AIMS[name]:.1f} s" if name in AIMS else ""
        print(f"  {name}: median {statistics.median(values):.2f} s ({values[0]:.2f} to {values[-1]:.2f}){aim}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
