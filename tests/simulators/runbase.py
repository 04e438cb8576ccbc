"""What the GPUs and hosts of a made run did, by phases (runs.py says how it goes on)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
from piolet.observe import layout
from piolet.observe.reading import Only, StepData

Array = np.ndarray[Any, np.dtype[Any]]

START = 1_790_000_000_000_000_000
WARM, TRAIN, CHECKPOINT, EVALUATE, END = range(5)
KINDS = ("training", "inference", "hpc", "interactive", "cpu")
_SHARES = (0.6, 0.17, 0.08, 0.05, 0.1)
LIMIT_W, IDLE_W, CLOCK_MHZ = 700.0, 75.0, 1980.0
PROFILED = ("engine", "sm", "occupancy", "tensor", "fp64", "fp32", "dram")


@dataclasses.dataclass
class Plan:
    """What a run is like: sizes, and what its nodes can tell."""

    kind: str
    nodes: int
    gpus: int
    interval: float
    samples: int
    pipeline: str = ""
    profiled: bool = True
    clocks: bool = True
    marks: bool = True
    io: bool = True
    net: bool = True

    @property
    def devices(self) -> int:
        """GPUs of all nodes."""
        return self.nodes * self.gpus

    @property
    def seconds(self) -> float:
        """Length of the run."""
        return self.samples * self.interval


@dataclasses.dataclass
class Truth:
    """What no detector sees: the fault ('' none), where, when (s of the run), and how large it is."""

    fault: str = ""
    node: str | None = None
    gpu: int | None = None
    start: float = 0.0
    end: float = 0.0
    effect: float = 0.0


@dataclasses.dataclass
class World:
    """A run while it is made. Arrays are (devices, samples) or (nodes, samples); shares of 0 to 1."""

    plan: Plan
    draw: np.random.Generator
    phase: Array
    work: Array
    spin: Array
    clock: Array
    held: Array
    host: dict[str, Array]
    io: dict[str, dict[str, Array]]
    net: dict[str, dict[str, Array]]
    gpu: dict[str, Array] = dataclasses.field(default_factory=dict)
    marks: dict[str, tuple[Array, Array]] = dataclasses.field(default_factory=dict)
    events: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    pace: Array = dataclasses.field(default_factory=lambda: np.ones(0))
    truth: Truth = dataclasses.field(default_factory=Truth)


class Run(StepData):
    """A finished run, whose tables are in memory."""

    def __init__(self, meta: dict[str, Any], tables: dict[str, dict[str, Any]], truth: Truth) -> None:
        super().__init__(Path("/nonexistent"), meta, self._made)
        self.truth, self._tables = truth, tables

    def _made(self, name: str, columns: list[str], _apart: bool, _only: Only) -> Iterator[pa.Table]:
        if rows := self._tables.get(name, {}):
            wanted = pa.schema([_schema(name).field(column) for column in columns])
            count = len(rows["time" if "time" in rows else "start"])
            yield pa.table([_column(rows.get(field.name), field, count) for field in wanted], schema=wanted)


@functools.cache
def _schema(name: str) -> pa.Schema:
    return layout.schema(name)


def _column(values: Any, field: pa.Field, count: int) -> pa.Array:
    if values is None:
        return pa.nulls(count, field.type)
    if isinstance(values, tuple):  # codes, and names
        return pa.DictionaryArray.from_arrays(pa.array(values[0].astype(np.int32)), pa.array(values[1], pa.string()))
    if pa.types.is_timestamp(field.type):
        return pa.array((values // 1000).astype("datetime64[us]")).cast(field.type)
    if isinstance(values, np.ndarray) and pa.types.is_floating(field.type):
        return pa.array(values.astype(field.type.to_pandas_dtype()), from_pandas=True)
    return (
        pa.array(values, pa.string()).dictionary_encode()
        if pa.types.is_dictionary(field.type)
        else pa.array(values, field.type)
    )


def noise(draw: np.random.Generator, shape: tuple[int, int], white: float, slow: float) -> Array:
    """Return noise that is partly the same for some samples in a row."""
    rows, many = shape
    knots = max(2, many // 20)
    coarse = draw.standard_normal((rows, knots), np.float32) * slow
    at = np.linspace(0, knots - 1, many)
    low = at.astype(int).clip(max=knots - 2)
    part = (at - low).astype(np.float32)
    drift = coarse[:, low] * (1 - part) + coarse[:, low + 1] * part
    return np.asarray(drift + draw.standard_normal(shape, np.float32) * white)


def planned(draw: np.random.Generator, **wanted: Any) -> Plan:
    """Return a plan; `wanted` are fields that it must have."""
    kind = wanted.get("kind") or str(draw.choice(KINDS, p=_SHARES))
    nodes, gpus = int(draw.choice([1, 1, 2, 2, 3, 4, 4, 6, 8])), int(draw.choice([1, 2, 4, 4, 4, 4]))
    nodes, gpus = max(nodes, wanted.get("least_nodes", 1)), max(gpus, wanted.get("least_gpus", 1))
    interval = float(draw.choice([10, 10, 10, 10, 30, 5, 1]))
    longest = 21_600 if kind != "inference" else 86_400
    seconds = float(np.exp(draw.uniform(np.log(wanted.get("least_s", 180)), np.log(longest))))
    samples = int(np.clip(seconds / interval, 12, max(60, 24_000 // (nodes * gpus))))
    if samples * interval < wanted.get("least_s", 0):  # too many for an array of ours: rarer samples
        interval = float(np.ceil(wanted["least_s"] / samples))
    plan = Plan(kind, nodes, gpus if kind != "cpu" else 0, interval, samples)
    if kind == "training" and nodes >= 2:
        plan.pipeline = str(draw.choice(["", "", "node", "gpu"]))
    chances = {"profiled": 0.85, "clocks": 0.95, "marks": 0.6 if kind == "training" else 0.0, "io": 0.8, "net": 0.7}
    for name, chance in chances.items():
        setattr(plan, name, bool(draw.random() < chance) or bool(wanted.get(name)))
    return plan


def phases(draw: np.random.Generator, plan: Plan) -> Array:
    """Return the phase of each sample."""
    many, dt = plan.samples, plan.interval
    phase = np.full(many, TRAIN)
    warm = min(draw.uniform(30, 400), 0.15 * plan.seconds)
    phase[: int(warm / dt)] = WARM
    if plan.kind in ("training", "hpc"):
        every, takes = draw.uniform(600, 2400), draw.uniform(8, 45) * (1 + plan.nodes / 16)
        at, number = warm + every, 0
        evaluates = plan.kind == "training" and draw.random() < 0.6
        while at < plan.seconds - takes:
            length = takes * draw.uniform(0.8, 1.4)
            phase[int(at / dt) : int((at + length) / dt)] = CHECKPOINT
            number += 1
            if evaluates and number % 3 == 0:
                phase[int((at + length) / dt) : int((at + length + every * draw.uniform(0.05, 0.2)) / dt)] = EVALUATE
            at += every * draw.uniform(0.9, 1.1) + length
        tail = min(draw.uniform(0, 240), 0.04 * plan.seconds)
        if tail > dt:
            phase[-int(tail / dt) :] = END
    return phase


def world(draw: np.random.Generator, plan: Plan, phase: Array) -> World:
    """Return a clean run: what was done."""
    many, devices, nodes = plan.samples, plan.devices, plan.nodes
    shape, hosts = (devices, many), (nodes, many)
    training = phase == TRAIN
    level = np.ones(many, np.float32)
    if plan.kind == "inference":  # a day, and bursts of requests
        at = np.arange(many) * plan.interval
        day = 0.5 + 0.35 * np.sin(2 * np.pi * (at / 86_400 + draw.random()))
        level = np.clip(day * (1 + noise(draw, (1, many), 0.25, 0.2)[0]), 0.02, 1).astype(np.float32)
    elif plan.kind == "interactive":
        knots = max(3, many // 30)
        level = np.repeat(draw.random(knots) < 0.5, -(-many // knots))[:many].astype(np.float32) * 0.7
        level[-max(2, many // 20) :] = 0.7
    elif plan.kind == "training":  # a curriculum: now and then another length of sequences
        for cut in draw.integers(0, many, int(draw.integers(0, 3))):
            level[cut:] = draw.uniform(0.93, 1.0)
    launch = draw.uniform(0.86, 0.99) if plan.kind != "hpc" else draw.uniform(0.6, 0.95)
    work = np.zeros(shape, np.float32)
    work += np.where(training, launch * level, np.where(phase == EVALUATE, 0.6 * launch, 0)).astype(np.float32)
    work += np.where(phase == WARM, draw.uniform(0, 0.2), 0).astype(np.float32) * (draw.random(shape) < 0.3)
    same = np.ones(devices, np.float32)
    index, node = np.arange(devices) % max(plan.gpus, 1), np.arange(devices) // max(plan.gpus, 1)
    if plan.pipeline:
        stage = draw.uniform(0.72, 1.0, nodes if plan.pipeline == "node" else plan.gpus)
        same = stage[node if plan.pipeline == "node" else index].astype(np.float32)
    same = same * (1 + draw.normal(0, 0.008, devices).astype(np.float32))
    if devices > 1 and draw.random() < 0.3:
        same[0] *= 1.03  # the first rank writes logs
    work = np.clip(work * same[:, None] * (1 + noise(draw, shape, 0.015, 0.01)), 0, 1)
    if plan.kind == "inference":
        work = np.clip(work * (1 + noise(draw, shape, 0.15, 0.05)), 0, 1)
    bursts = draw.random(many) < 0.004  # a sample in which all stood still: garbage collection, a retry of NCCL
    work[:, bursts] *= draw.uniform(0.2, 0.8)
    spin = np.zeros(shape, np.float32)
    if devices > 1 and plan.kind in ("training", "hpc"):
        spin = (1 - work) * (work > 0.3) * np.float32(draw.uniform(0.4, 0.9))
        if draw.random() < 0.4:  # the first rank saves, and the others wait in a collective
            saving = (phase == CHECKPOINT)[None, :]
            spin = np.where(saving, np.float32(0.95), spin)
            spin[0] = np.where(saving[0], 0.0, spin[0])
    made = World(plan, draw, phase, work, spin, np.ones(shape, np.float32), np.zeros(shape, np.int64), {}, {}, {})
    made.pace = np.where(training, level, 0.0).astype(np.float64)
    _clocks(made)
    _host(made, hosts, launch)
    _files(made, hosts)
    _ports(made, hosts)
    return made


def _clocks(made: World) -> None:
    """The power limit holds under full load: known of all GPUs of 700 W; heat for a moment now and then: a guess."""
    draw, plan = made.draw, made.plan
    capped = (made.work > 0.75) & (draw.random(made.work.shape) < draw.choice([0.0, 0.3, 0.9]))
    made.clock = np.where(capped, np.float32(draw.uniform(0.88, 0.97)), made.clock)
    made.held |= np.where(capped, 0x4, 0)
    if plan.devices and draw.random() < 0.1:
        hot = draw.random(made.work.shape) < 0.003
        made.clock = np.where(hot, np.float32(0.85), made.clock)
        made.held |= np.where(hot, 0x20, 0)
    made.clock = made.clock * (1 + draw.normal(0, 0.004, (plan.devices, 1)).astype(np.float32))


def _host(made: World, shape: tuple[int, int], launch: float) -> None:
    draw, plan, phase = made.draw, made.plan, made.phase
    cores = draw.uniform(8, 60)
    limit = float(draw.choice([128, 256, 480, 800])) * 2**30
    at = np.arange(plan.samples) * plan.interval
    start, grown = draw.uniform(0.05, 0.5), draw.uniform(0.0, 0.25)
    tau = draw.uniform(60, max(120, 0.12 * plan.seconds))
    anon = start + grown * (1 - np.exp(-at / tau)) + 0.03 * (phase == CHECKPOINT)  # caches fill, then no more
    if draw.random() < 0.3:
        anon = anon + 0.04 * ((at / draw.uniform(300, 1500)) % 1)  # garbage that is collected
    saving, busy = (phase == CHECKPOINT) | (phase == END), phase == TRAIN
    many_cpus = draw.random() < 0.2  # loaders that keep up, and take all there is
    host = {
        "cpu": cores * np.where(busy, 0.7, 0.25) * (1 + noise(draw, shape, 0.08, 0.05)),
        "cpu_throttled": np.zeros(shape),
        "cpu_pressure": np.clip((0.3 if many_cpus and plan.kind != "inference" else 0.02) * np.where(busy, 1.0, 0.3)
                                * (1 + noise(draw, shape, 0.4, 0.2)), 0, 1),
        "memory_anon": limit * np.clip(anon * (1 + noise(draw, shape, 0.002, 0.002)), 0.01, 0.97),
        "memory_limit": np.full(shape, limit),
        "memory_file": limit * np.clip(0.1 + 0.5 * at / plan.seconds, 0, 0.8) * np.ones(shape),  # page cache fills up
        "memory_pressure": np.clip(noise(draw, shape, 0.002, 0.001), 0, 1),
        "io_pressure": np.clip(np.where(saving, draw.uniform(0.1, 0.5), 0.01)
                               * (1 + noise(draw, shape, 0.5, 0.3)), 0, 1),
        "file_read": 2e8 * np.where(busy, 1.0, 0.1) * np.clip(1 + noise(draw, shape, 0.4, 0.2), 0.05, None),
        "file_write": np.where(saving, 2e9, 1e6) * np.clip(1 + noise(draw, shape, 0.3, 0.2), 0.05, None),
        "processes": np.full(shape, float(draw.integers(10, 200))),
        "blocked": (draw.random(shape) < np.where(saving, 0.3, 0.004)) * 1.0,
        "out_of_memory": np.zeros(shape),
        "node_power": np.full(shape, 400.0),
    }  # fmt: skip
    if many_cpus:
        host["cpu"] = host["cpu"] * 1.4
    made.host = host


def _files(made: World, shape: tuple[int, int]) -> None:
    draw, saving = made.draw, made.phase == CHECKPOINT
    names = ["/scratch", "/users"] if draw.random() < 0.6 else ["/scratch"]
    for mount in names if made.plan.io else ():
        usual = draw.uniform(0.0005, 0.006)
        tails = np.exp(noise(draw, shape, 0.5, 0.25)) * np.where(draw.random(shape) < 0.01, draw.uniform(2, 12), 1)
        reads = draw.uniform(20, 400) * np.exp(noise(draw, shape, 0.3, 0.2))
        made.io[mount] = {
            "read": reads * 4e5,
            "write": np.where(saving & (mount == "/scratch"), 1.5e9, 2e5) * np.exp(noise(draw, shape, 0.3, 0.1)),
            "read_operations": reads,
            "write_operations": np.where(saving, 400, 2) * np.exp(noise(draw, shape, 0.2, 0.1)),
            "metadata_operations": np.exp(noise(draw, shape, 1.0, 0.3)),
            "wait": usual * tails * np.where(saving, draw.uniform(1.5, 3), 1),  # large writes take longer
        }


def _ports(made: World, shape: tuple[int, int]) -> None:
    draw = made.draw
    together = made.work.mean(axis=0) if made.plan.devices else np.zeros(shape[1])
    for port in ("hsn0", "hsn1")[: int(draw.integers(1, 3))] if made.plan.net else ():
        few = (draw.random(shape) < 0.02) * draw.exponential(1.0, shape)  # a retry now and then, from all ports
        made.net[port] = {
            "rx": 8e9 * together * np.exp(noise(draw, shape, 0.2, 0.1)),
            "tx": 8e9 * together * np.exp(noise(draw, shape, 0.2, 0.1)),
            "errors": np.zeros(shape),
            "retries": few,
            "stalled": np.clip(0.05 * together * (1 + noise(draw, shape, 0.3, 0.3)), 0, 1),
        }
