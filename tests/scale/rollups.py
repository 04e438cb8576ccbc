"""Measures a roll-up: `python -m tests.scale.rollups [GPUS [HOURS [PERIOD]]]`, 64 GPUs for 24 h at 1 Hz if not said.

Prints the seconds that the roll-up takes once, its bytes and the samples', and how many milliseconds it takes to read
what a page needs of it: seven quantities, over time, of every GPU and of every host. Beside both is the processor time,
which is what they take where others work on the machine, too.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
from piolet.api import GPU_QUANTITIES
from piolet.observe import reading, rollup, writing

START = 1_790_000_000 * 10**9
SHOWN = ("sm", "tensor", "dram", "power", "memory_used", "temperature", "cpu")
ABSENT = ("tensor_int", "tensor_half", "tensor_double", "c2c_tx", "c2c_rx")


def samples(node: str, gpus: int, seconds: int, period: float, seed: int) -> pa.Table:
    """Return the samples of a node: steady load with noise, a stop now and then, and values that a sensor missed."""
    rng = np.random.default_rng(seed)
    count = round(seconds / period)
    rows: dict[str, Any] = {
        "time": np.tile(START + ((1 + np.arange(count)) * period * 1e9).astype(np.int64), gpus),
        "span": np.full(count * gpus, period),
        "gpu": np.repeat(np.arange(gpus), count),
        "node": pa.DictionaryArray.from_arrays(np.zeros(count * gpus, np.int32), [node]),
        "uuid": pa.DictionaryArray.from_arrays(
            np.repeat(np.arange(gpus, dtype=np.int32), count), [f"GPU-{node}-{gpu}" for gpu in range(gpus)]
        ),
    }
    load = np.where(np.sin(np.arange(count * gpus) / 700) > -0.98, 0.8, 0.02).astype(np.float32)
    scale = {"B/s": 2e10, "W": 600.0, "degC": 60.0, "MHz": 1900.0, "B": 7e10, "1": 1.0}
    for quantity in GPU_QUANTITIES:
        if quantity.name in ABSENT:
            continue
        noise = rng.normal(1.0, 0.03, count * gpus).astype(np.float32)
        values = load * noise * np.float32(scale.get(quantity.unit, 0.0))
        if quantity.name == "energy":
            values = np.cumsum(load.astype(np.float64) * 600 * period)
        if quantity.name == "memory_used":
            values = np.round(values, -8)
        values[rng.integers(0, count * gpus, count // 1000)] = np.nan
        rows[quantity.name] = values
    return writing.conformed("gpu", rows)


def make(directory: Path, gpus: int, seconds: int, period: float, of_node: int = 4) -> None:
    """Write a step of so many GPUs."""
    nodes = [f"nid{number:05d}" for number in range(-(-gpus // of_node))]
    meta = {"job": "1", "step": "0", "start": START, "end": START + seconds * 10**9, "nodes": nodes}
    writing.write_meta(directory, {**meta, "devices": {node: [{}] * of_node for node in nodes}})
    count = round(seconds / period)

    def hosts(node: str) -> pa.Table:
        time_of = START + ((1 + np.arange(count)) * period * 1e9).astype(np.int64)
        cpu = np.random.default_rng(1).normal(8, 0.1, count)
        rows = {"time": time_of, "span": [period] * count, "node": [node] * count, "cpu": cpu}
        return writing.conformed("host", rows)

    def pieces() -> Iterator[pa.Table]:
        for number, node in enumerate(nodes):
            yield samples(node, of_node, seconds, period, number)

    writing.write_pieces(directory, "gpu", pieces())
    writing.write_pieces(directory, "host", map(hosts, nodes))


def measure(gpus: int, hours: float, period: float) -> dict[str, float]:
    """Return what a roll-up takes."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        make(directory, gpus, round(hours * 3600), period)
        begun, cpu = time.perf_counter(), time.process_time()
        rollup.write(reading.open_step(directory))
        once, once_cpu = time.perf_counter() - begun, time.process_time() - cpu
        read, cpu = [], time.process_time()
        for _ in range(5):
            begun = time.perf_counter()
            step = reading.open_step(directory)
            for quantity in SHOWN:
                assert len(rollup.lines(step, quantity).keys) == (len(step.nodes) if quantity == "cpu" else gpus)
            read.append(1000 * (time.perf_counter() - begun))
        page_cpu = (time.process_time() - cpu) / len(read)
        sizes = {table: (directory / f"{table}.parquet").stat().st_size for table in ("gpu", "rollup")}
        rows = len(step.table("gpu", ["gpu"]))
        page = {"page_ms": sorted(read)[2], "page_cpu_ms": 1000 * page_cpu}
        return {
            "once_s": once,
            "once_cpu_s": once_cpu,
            **page,
            "rows": rows,
            **{f"{k}_bytes": v for k, v in sizes.items()},
        }


def main(words: list[str]) -> int:
    """Measure, and print."""
    gpus, hours, period = [*map(float, words), *(64.0, 24.0, 1.0)[len(words) :]]
    print(json.dumps(measure(int(gpus), hours, period)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
