"""A training job that went wrong, simulated, in the layout of observe/layout.py: what docs/observe.md walks through.

Four nodes with four GPUs train for an hour. From the 20th minute on a GPU of node3 is held back by its temperature, and
everybody waits for it; from the 38th on, for eight minutes, the parallel file system is slow, and the data loader and a
checkpoint wait for that. node2's sampler is restarted in between. The figures say nothing about real machines.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from piolet.observe import writing
from piolet.observe.job import Change, Changes, Job, Run

Array = np.ndarray[Any, np.dtype[Any]]

NODES, GPUS, SECONDS, EVERY = ("node1", "node2", "node3", "node4"), 4, 3600, 10
START = 1_796_000_000 * 10**9  # 2026-11-30
SICK, SICK_GPU = "node3", 2
HOT, SLOW, GAP = (1200, SECONDS), (2280, 2760), (1500, 1620)
MARK = "simulated by tools/incident.py"
NO_DCGM = "no library libdcgm.so.4: NVML's GPM is read instead"
UID = 60_001  # nobody's on most machines
MODEL = "NVIDIA H100 80GB HBM3"


def write(directory: Path, findings: Sequence[dict[str, Any]] = ()) -> Path:
    """Write the step's data into a directory, which is made, and return it; `findings` are rows of that table."""
    directory.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(20261130)
    times = np.arange(EVERY, SECONDS + 1, EVERY)
    pace = _pace(times)
    for table, rows in (
        ("gpu", _gpu(times, pace, draw)),
        ("host", _host(times, pace, draw)),
        ("io", _io(times, pace, draw)),
        ("net", _net(times, pace, draw)),
        ("events", _events()),
        ("marks", _marks(times, pace, draw)),
        ("quality", _quality()),
    ):
        writing.write_table(directory, table, rows)
    if findings:
        names = list(dict.fromkeys(name for row in findings for name in row))
        writing.write_table(directory, "findings", {name: [row.get(name) for row in findings] for name in names})
    writing.write_meta(directory, _meta())
    return directory


def _within(times: Array, span: tuple[int, int]) -> Array:
    return (times > span[0]) & (times <= span[1])


def _pace(times: Array) -> Array:
    """Return how fast steps go, 1 being what they should be: everybody waits for the slowest."""
    pace = np.where(_within(times, HOT), 0.72, 1.0)
    pace = np.where(_within(times, SLOW), pace * 0.35, pace)
    return np.where(times <= 60, 0.0, pace)  # it loads first


def _all(times: Array, lanes: int) -> dict[str, Any]:
    """Return time and span of samples of so many rows a tick."""
    ends = np.tile(START + times * 10**9, lanes)
    return {"time": ends, "span": np.full(len(ends), float(EVERY))}


def _known(columns: dict[str, Any], times: Array, nodes: Array) -> dict[str, Any]:
    """Leave out what the restarted sampler did not see."""
    seen = ~((nodes == "node2") & _within(times, GAP))
    return {name: np.asarray(values)[seen] for name, values in columns.items()}


def _gpu(times: Array, pace: Array, draw: Any) -> dict[str, Any]:
    where = [(node, gpu) for node in NODES for gpu in range(GPUS)]
    lanes, size = len(where), len(times)
    noise = draw.normal(0, 0.02, (lanes, size))
    hot = np.zeros((lanes, size), bool)
    hot[where.index((SICK, SICK_GPU))] = _within(times, HOT)
    busy = np.broadcast_to(pace, (lanes, size))
    tensor = np.clip(0.62 * busy + noise, 0, 1) * (busy > 0)
    clock = np.where(hot, 1080.0, 1755.0) + draw.normal(0, 8, hot.shape)
    sm = np.clip(np.where(hot, 0.97, 0.9 * busy) + noise, 0, 1) * (busy > 0)
    warm = np.minimum(1, times / 300)
    columns = {
        **_all(times, lanes),
        "node": np.repeat([node for node, _ in where], size),
        "gpu": np.repeat([gpu for _, gpu in where], size),
        "uuid": np.repeat([_uuid(*each) for each in where], size),
        "engine": np.clip(np.where(busy > 0, 0.45 + 0.53 * busy, 0.02) + noise / 2, 0, 1),
        "utilisation": np.clip(np.where(busy > 0, 0.97, 0.03) + noise / 2, 0, 1),
        "sm": sm,
        "occupancy": 0.4 * sm,
        "tensor": tensor,
        "fp64": 0 * tensor,
        "fp32": 0.12 * tensor,
        "fp16": 0.05 * tensor,
        "dram": np.clip(0.45 * busy + noise, 0, 1) * (busy > 0),
        **{
            f"{link}_{way}": 0.35 * tensor * rate
            for link, rate in (("nvlink", 3e11), ("pcie", 9e9))
            for way in ("tx", "rx")
        },
        "memory_used": np.where(busy > 0, 71e9, 2e9 + 0 * busy),
        "power": np.clip(110 + 540 * busy * np.where(hot, 0.62, 1) + draw.normal(0, 9, hot.shape), 90, 700),
        "temperature": np.round(34 + 29 * warm + 3 * noise * 10 + np.where(hot, 25, 0)),
        "clock_sm": clock,
        "clock_events": np.where(hot, 0x40.__float__(), 0.0),
    }
    flat = {name: np.asarray(values).ravel() for name, values in columns.items()}
    return _known(flat, np.tile(times, lanes), flat["node"])


def _uuid(node: str, gpu: int) -> str:
    return f"GPU-{node}-{gpu}"


def _host(times: Array, pace: Array, draw: Any) -> dict[str, Any]:
    lanes, size = len(NODES), len(times)
    busy = np.broadcast_to(pace, (lanes, size))
    slow = np.broadcast_to(_within(times, SLOW), (lanes, size))
    noise = draw.normal(0, 0.03, (lanes, size))
    columns = {
        **_all(times, lanes),
        "node": np.repeat(NODES, size),
        "cpu": np.clip(22 * busy + 3 + 8 * noise, 0, 64),
        "memory_anon": 92e9 + 2.2e6 * np.broadcast_to(times, busy.shape) + 1e9 * noise,
        "memory_limit": np.full((lanes, size), 480e9),
        "memory": 180e9 + 2.2e6 * np.broadcast_to(times, busy.shape) + 1e9 * noise,
        "io_pressure": np.clip(np.where(slow, 0.68, 0.03) + noise, 0, 1),
        "cpu_pressure": np.clip(0.04 + noise / 3, 0, 1),
        "memory_pressure": np.clip(noise / 10, 0, 1),
        "file_read": np.clip(420e6 * busy * (1 + noise), 0, None),
        "file_write": np.where(_checkpoint(times), 900e6, 2e6) * np.where(slow, 0.12, 1) * (1 + noise),
        "node_power": 900 + 2300 * busy + 40 * noise,
    }
    flat = {name: np.asarray(values).ravel() for name, values in columns.items()}
    return _known(flat, np.tile(times, lanes), flat["node"])


def _checkpoint(times: Array) -> Array:
    return (times % 600 < 40) & (times > 100)


def _io(times: Array, pace: Array, draw: Any) -> dict[str, Any]:
    lanes, size = len(NODES), len(times)
    slow = np.broadcast_to(_within(times, SLOW), (lanes, size))
    noise = draw.normal(0, 0.08, (lanes, size))
    busy = np.broadcast_to(pace, (lanes, size))
    scratch = {
        **_all(times, lanes),
        "node": np.repeat(NODES, size),
        "mount": np.full(lanes * size, "/scratch"),
        "kind": np.full(lanes * size, "lustre"),
        "scope": np.full(lanes * size, "node"),
        "read": np.clip(410e6 * busy * (1 + noise), 0, None),
        "write": np.where(_checkpoint(times), 900e6, 2e6) * np.where(slow, 0.12, 1) * (1 + noise),
        "read_operations": 400 * busy * (1 + noise),
        "write_operations": np.where(_checkpoint(times), 900, 2.0) * (1 + noise),
        "wait": np.where(slow, 0.19, 0.0035) * np.clip(1 + 2 * noise, 0.2, None),
    }
    flat = {name: np.asarray(values).ravel() for name, values in scratch.items()}
    return _known(flat, np.tile(times, lanes), flat["node"])


def _net(times: Array, pace: Array, draw: Any) -> dict[str, Any]:
    lanes, size = len(NODES), len(times)
    busy = np.broadcast_to(pace, (lanes, size))
    noise = draw.normal(0, 0.05, (lanes, size))
    columns = {
        **_all(times, lanes),
        "node": np.repeat(NODES, size),
        "port": np.full(lanes * size, "hsn0"),
        "kind": np.full(lanes * size, "cxi"),
        "rate": np.full(lanes * size, 25e9),
        "rx": np.clip(7e9 * busy * (1 + noise), 0, None),
        "tx": np.clip(7e9 * busy * (1 + noise), 0, None),
        "errors": np.zeros(lanes * size),
        "retries": np.zeros(lanes * size),
    }
    flat = {name: np.asarray(values).ravel() for name, values in columns.items()}
    return _known(flat, np.tile(times, lanes), flat["node"])


def _events() -> dict[str, Any]:
    slow = "Lustre: slow reply of scratch-OST0007"
    rows = [
        (0, None, None, "step.start", "root", "info", "the step began on 4 nodes"),
        (HOT[0], SICK, _uuid(SICK, SICK_GPU), "gpu.throttled", "kernel", "warning", "the clock is held back: thermal"),
        (SLOW[0] + 25, None, "/scratch", "filesystem.slow", "kernel", "warning", slow),
        (SLOW[0] + 300, "node1", "/scratch", "filesystem.slow", "kernel", "warning", slow),
        (GAP[0], "node2", None, "sampler.restarted", "root", "warning", "the sampler was restarted"),
        (SECONDS, None, None, "step.end", "root", "info", "the step ended with 0"),
    ]  # fmt: skip
    names = ("node", "subject", "kind", "source", "severity", "text")
    return {
        "time": [START + second * 10**9 for second, *_ in rows],
        **{name: [row[i] for row in rows] for i, name in enumerate(names, 1)},
    }


def _marks(times: Array, pace: Array, draw: Any) -> dict[str, Any]:
    done = np.cumsum(pace) * EVERY / SECONDS
    told = times[pace > 0]
    loss = (2.1 + 7.5 * np.exp(-6 * done) + draw.normal(0, 0.04, len(times)))[pace > 0]
    speed = (18200 * pace * (1 + draw.normal(0, 0.015, len(times))))[pace > 0]
    rows = [(t, "loss", v, "output") for t, v in zip(told, loss, strict=True)]
    rows += [(t, "tokens_per_second", v, "output") for t, v in zip(told, speed, strict=True)]
    rows += [(t, "epoch", n, "command") for n, t in enumerate((70, 1250, 2850))]
    return {
        "time": [START + int(row[0]) * 10**9 for row in rows],
        **{name: [row[i] for row in rows] for i, name in enumerate(("name", "value", "origin"), 1)},
    }


def _quality() -> dict[str, Any]:
    lost = len(range(GAP[0], GAP[1], EVERY))
    return {
        "node": ["node2", None],
        "source": ["samples", "dcgm"],
        "start": [START + GAP[0] * 10**9, START],
        "end": [START + GAP[1] * 10**9, START + SECONDS * 10**9],
        "reason": ["the sampler was restarted", NO_DCGM],
        "values": [lost * GPUS * 20, 0],
    }


def _meta() -> dict[str, Any]:
    device = {"name": MODEL, "memory": 80 << 30, "power_limit": 700.0, "clock_sm_max": 1980.0}
    return {
        "cluster": "simulated",
        "job": "4242",
        "step": "0",
        "uid": UID,
        "user": "alice",
        "account": "llm",
        "partition": "gpu",
        "name": "train-7b",
        "command": "srun -N4 --ntasks-per-node=4 --environment=pytorch python train.py --model 7b --data /scratch/web",
        "nodes": list(NODES),
        "start": START,
        "end": START + SECONDS * 10**9,
        "state": "COMPLETED",
        "exit": "0",
        "environment": {
            "file": "pytorch.toml",
            "image": "docker://nvcr.io#nvidia/pytorch:26.10-py3",
            "digest": "sha256:5f0c3a9be1d2",
            "variables": {"NCCL_DEBUG": "WARN", "HF_TOKEN": "(not shown)"},
        },
        "vetting": {
            "outcome": "passed",
            "protocol": "gpu-quick 3",
            "left out": {"node5": "scratch: 2 GB free, 20 needed"},
        },
        "devices": {node: [{**device, "uuid": _uuid(node, gpu)} for gpu in range(GPUS)] for node in NODES},
        "simulated": MARK,
        "interval": float(EVERY),
    }


CHANGES = Changes(
    since="4190",
    ended=START / 1e9 - 86_400,
    changes=(
        Change("nodes", "node1, node2, node4, node6", "node1 to node4", "node3 is there for node6"),
        Change("image", "pytorch:26.09-py3", "pytorch:26.10-py3", "another image"),
        Change(
            "tokens_per_second", "18,180 (17,900 to 18,400)", "12,410 (12,100 to 12,700)", "the intervals are apart"
        ),
    ),
    same=("file", "driver"),
    unknown=(),
)

JOB = Job(
    version=1, job="4242", number=4242, step="0", name="train-7b", user="alice", uid=UID, account="llm",
    partition="gpu", cluster="simulated", command="", gpus=16, submit=None, limit=None, waits_for="",
    now=Run(0, "COMPLETED", 0, 0, "", NODES, START / 1e9, START / 1e9 + SECONDS), changes=CHANGES,
)  # fmt: skip

# What detectors find in these data, as they would say it; docs and demo replace them with what they do find.
FINDINGS = (
    {
        "detector": "straggler", "version": 1, "node": SICK, "subject": _uuid(SICK, SICK_GPU),
        "start": START + HOT[0] * 10**9, "end": START + HOT[1] * 10**9, "effect": 0.38, "unit": "1", "confidence": 0.99,
        "text": f"GPU {SICK_GPU} of {SICK} works at 1080 MHz where the others have 1755 MHz, and all wait for it",
        "advice": f"Leave {SICK} out (--exclude={SICK}) and tell the site: its GPU {SICK_GPU} is throttled by heat.",
        "evidence": '{"clock of it": "1080 MHz", "median of the others": "1755 MHz", "temperature": "88 degC"}',
    },
    {
        "detector": "slow-filesystem", "version": 1, "node": None, "subject": "/scratch",
        "start": START + SLOW[0] * 10**9, "end": START + SLOW[1] * 10**9, "effect": 54.0, "unit": "times as long",
        "confidence": 0.99, "text": "an operation on /scratch took 190 ms, 54 times as long as before, on all nodes",
        "advice": "The file system was slow, not the program: nothing to do but to tell the site.",
        "evidence": '{"before": "3.5 ms", "while": "190 ms", "nodes": 4, "waited for I/O": "68 % of the time"}',
    },
)  # fmt: skip
