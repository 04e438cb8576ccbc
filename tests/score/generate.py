"""Generates a large data set: `python -m tests.score.generate DIRECTORY --nodes 256 --gpus 4 --hours 24 --period 1`.

A training run: steps of compute with noise, a checkpoint each half hour, one slow node. Marked as simulated.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from piolet.api import GPU_QUANTITIES, HOST_QUANTITIES
from piolet.samples import dataset
from piolet.samples.dataset import Node
from piolet.samples.journals import NodeFacts
from piolet.score.overview import summary_of

START = 1_700_000_000_000_000_000
_CHUNK = 50_000


def facts(node: int, gpus: int, seconds: float, period: float) -> NodeFacts:
    """Return what the sampler would have written of a node."""
    header = {
        "version": 1,
        "job": "1000",
        "step": "0",
        "node": f"node{node:04}",
        "uid": 1000,
        "label": "generated",
        "command": "train.py",
        "period": period,
        "start": 0,
        "origin": START,
        "gpu_columns": [q.name for q in GPU_QUANTITIES],
        "host_columns": [q.name for q in HOST_QUANTITIES],
        "devices": [
            {
                "uuid": f"GPU-{node:08x}-{i:04x}",
                "name": "NVIDIA H100 80GB HBM3",
                "memory": 85520809984,
                "power_limit": 700.0,
                "mig": False,
                "clock_sm_max": 1980.0,
                "clock_memory_max": 2619.0,
            }
            for i in range(gpus)
        ],
        "collectors": [{"name": "gpm", "source": "generated", "simulated": "generated", "period": period}],
        "not_used": {},
        "simulated": "generated",
        "allocated": gpus,
    }
    ticks = int(seconds / period)
    quality = {"ticks": ticks, "late_ticks": 0, "worst_late_s": 0.0, "dropped_frames": 0, "blanks": {}}
    end = START + int(seconds * 1e9)
    return NodeFacts(header, quality, [{"event": "end", "at": int(seconds * 1e9)}], START, end, True)


def samples(node: int, gpus: int, seconds: float, period: float) -> Iterator[dict[str, Any]]:
    """Yield chunks of samples."""
    draw = np.random.default_rng(node)
    ticks = int(seconds / period)
    slow = 0.8 if node == 7 else 1.0
    for first in range(0, ticks, _CHUNK // gpus):
        tick = np.repeat(np.arange(first, min(ticks, first + _CHUNK // gpus)), gpus)
        at = (tick + 1) * period
        size = len(tick)
        work = np.where(at % 1800 < 1740, 1.0, 0.0) * slow
        tensor = np.clip(0.55 * work + draw.normal(0, 0.05, size), 0, 1)
        chunk: dict[str, Any] = {quantity.name: np.zeros(size) for quantity in GPU_QUANTITIES}
        chunk.update(
            device=np.tile(np.arange(gpus), size // gpus),
            span=np.full(size, period),
            end=START + (at * 1e9).astype(np.int64),
            engine=np.clip(0.97 * work + draw.normal(0, 0.02, size), 0, 1),
            sm=np.clip(0.85 * work + draw.normal(0, 0.04, size), 0, 1),
            occupancy=np.clip(0.2 * work + draw.normal(0, 0.02, size), 0, 1),
            tensor=tensor,
            tensor_half=tensor,
            fp32=np.clip(0.05 * work + draw.normal(0, 0.01, size), 0, 1),
            integer=np.clip(0.1 * work + draw.normal(0, 0.01, size), 0, 1),
            dram=np.clip(0.45 * work + draw.normal(0, 0.05, size), 0, 1),
            nvlink_tx=np.abs(120e9 * work + draw.normal(0, 10e9, size)),
            nvlink_rx=np.abs(120e9 * work + draw.normal(0, 10e9, size)),
            pcie_rx=np.abs(1e9 + draw.normal(0, 2e8, size)),
            pcie_tx=np.abs(5e8 + draw.normal(0, 1e8, size)),
            utilisation=np.round(np.clip(work + draw.normal(0, 0.01, size), 0, 1), 2),
            memory_used=np.full(size, 62e9),
            power=120 + 480 * work + draw.normal(0, 15, size),
            energy=1e6 + at * 560,
            temperature=np.round(45 + 15 * work + draw.normal(0, 1, size)),
            memory_temperature=np.round(55 + 15 * work + draw.normal(0, 1, size)),
            clock_sm=np.where(work > 0, 1755.0, 345.0),
            clock_memory=np.full(size, 2619.0),
        )
        yield chunk


def hosts(seconds: float) -> Iterator[dict[str, Any]]:
    """Yield samples of the host, one a minute."""
    at = np.arange(60, seconds + 1, 60)
    chunk: dict[str, Any] = {quantity.name: np.full(len(at), 0.1) for quantity in HOST_QUANTITIES}
    chunk.update(device=np.full(len(at), 65535), span=np.full(len(at), 60.0), end=START + (at * 1e9).astype(np.int64))
    chunk["memory"] = np.full(len(at), 2e11)
    yield chunk


class Generated(Node):
    """A node whose samples are not in a file yet."""

    def chunks(self, columns: Sequence[str], host: bool = False, after: int = 0) -> Iterator[dict[str, Any]]:
        """Yield what `samples` and `hosts` do."""
        header = self.facts.header
        seconds, period = (self.facts.end - self.facts.start) / 1e9, header["period"]
        number = int(header["node"].removeprefix("node"))
        return hosts(seconds) if host else samples(number, len(header["devices"]), seconds, period)


def one(arguments: tuple[Path, int, int, float, float]) -> None:
    """Write one node."""
    directory, node, gpus, seconds, period = arguments
    known = facts(node, gpus, seconds, period)
    name = known.header["node"]
    summary = summary_of(Generated(directory, known))
    dataset.write(directory / f"{name}.host.parquet", known, hosts(seconds), host=True)
    dataset.write(directory / f"{name}.parquet", known, samples(node, gpus, seconds, period), summary=summary)


def generate(directory: Path, nodes: int, gpus: int, seconds: float, period: float) -> None:
    """Write a data set."""
    directory.mkdir(parents=True, exist_ok=True)
    work = [(directory, node, gpus, seconds, period) for node in range(nodes)]
    if nodes == 1:
        one(work[0])
        return
    with concurrent.futures.ProcessPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(one, work))


def main() -> None:
    """Generate what the command line asks for, and say how large it became."""
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("--nodes", type=int, default=256)
    parser.add_argument("--gpus", type=int, default=4)
    parser.add_argument("--hours", type=float, default=24)
    parser.add_argument("--period", type=float, default=1)
    args = parser.parse_args()
    before = time.monotonic()
    generate(args.directory, args.nodes, args.gpus, args.hours * 3600, args.period)
    size = sum(path.stat().st_size for path in args.directory.iterdir())
    print(f"{size / 1e9:.2f} GB in {time.monotonic() - before:.0f} s")


if __name__ == "__main__":
    main()
