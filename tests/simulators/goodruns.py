"""Good runs that look like faults: what real steps do that the generators' clean runs do not, each made by hand.

Each came from the question what a user would be told wrongly. `GOOD` has them by name; `FAULTY` beside some of them the
run that differs in nothing but the fault, which has to be found still.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.simulators.runbase import CLOCK_MHZ, IDLE_W, LIMIT_W, START, Array, Run, Truth

BINS, EVERY = 360, 10
Marks = dict[str, tuple[Array, Array]]


def training(devices: int, busy: Array | float = 1.0, seed: int = 1) -> dict[str, Array]:
    """Return figures of GPUs that train where `busy` is 1, and do nothing where it is 0: (devices, BINS)."""
    draw = np.random.default_rng(seed)
    shape = (devices, BINS)
    on = np.broadcast_to(np.asarray(busy, float), shape)

    def seen(level: float, noise: float) -> Array:
        return np.asarray(np.round(np.clip(on * level * (1 + noise * draw.standard_normal(shape)), 0, 1), 4))

    power = IDLE_W + on * (0.8 * LIMIT_W - IDLE_W) + draw.normal(0, 1.5, shape) + on * draw.normal(0, 10, shape)
    return {
        "engine": seen(0.93, 0.004), "sm": seen(0.8, 0.006), "tensor": seen(0.4, 0.006), "dram": seen(0.4, 0.006),
        "utilisation": np.round(seen(0.97, 0.01), 2), "power": np.round(power, 1),
        "temperature": np.round(35 + 30 * on), "clock_sm": np.where(on > 0, CLOCK_MHZ, 600.0) * np.ones(shape),
        "clock_events": np.where(on > 0, 0.0, 1.0),
    }  # fmt: skip


def step(
    gpu: dict[str, Array] | None = None,
    *,
    nodes: int = 1,
    host: dict[str, Array] | None = None,
    io: dict[str, Array] | None = None,
    marks: Marks | None = None,
    facts: dict[str, Any] | None = None,
) -> Run:
    """Return a step of an hour: `gpu` (devices, BINS), `host` and `io` of one mount (nodes, BINS), marks by name."""
    names = [f"node{number}" for number in range(1, nodes + 1)]
    tables: dict[str, dict[str, Any]] = {}

    def rows(table: str, values: dict[str, Array], per_node: int) -> dict[str, Any]:
        lines = nodes * per_node
        line, when = np.divmod(np.arange(lines * BINS), BINS)
        tables[table] = {
            "time": START + (when + 1) * EVERY * 10**9, "span": np.full(len(when), float(EVERY)),
            "node": (line // per_node, names), **{name: np.asarray(one).reshape(-1) for name, one in values.items()},
        }  # fmt: skip
        return tables[table] | {"line": line}

    per_node = len(gpu["power"]) // nodes if gpu else 0
    if gpu:
        found = rows("gpu", gpu, per_node)
        uuids = [f"GPU-good-{number}" for number in range(nodes * per_node)]
        tables["gpu"] |= {"gpu": found["line"] % per_node, "uuid": (found["line"], uuids)}
    if host:
        rows("host", host, 1)
    if io:
        found = rows("io", io, 1)
        tables["io"] |= {"mount": (0 * found["line"], ["/data"]), "kind": (0 * found["line"], ["nfs"])}
    if marks:
        at = np.concatenate([one for one, _ in marks.values()])
        codes = np.repeat(np.arange(len(marks)), [len(one) for one, _ in marks.values()])
        tables["marks"] = {
            "time": START + (at * 1e9).astype(np.int64), "name": (codes, list(marks)),
            "value": np.concatenate([values for _, values in marks.values()]),
            "origin": (0 * codes, ["output"]),
        }  # fmt: skip
    known = {"uuid": "", "power_limit": LIMIT_W, "power_limit_default": LIMIT_W, "clock_sm_max": CLOCK_MHZ}
    meta = {
        "version": 1, "job": "7", "step": "0", "nodes": names, "start": START, "end": START + BINS * EVERY * 10**9,
        "interval": EVERY, "devices": dict.fromkeys(names, [known | (facts or {})] * per_node),
    }  # fmt: skip
    return Run(meta, tables, Truth())


def _only(*used: int, until: int = BINS) -> Array:
    """Return that of four GPUs these are used, until some bin."""
    busy = np.zeros((4, BINS))
    busy[list(used), 3:until] = 1
    return busy


def _unprofiled(gpu: dict[str, Array]) -> dict[str, Array]:
    return {name: values for name, values in gpu.items() if name not in ("engine", "sm", "tensor", "dram")}


def _small_kernels() -> Run:
    """Two GPUs, of which one is used; its last minutes are small kernels: active, with few multiprocessors."""
    gpu = {name: values[:2] for name, values in training(4, _only(0)).items()}
    gpu["sm"][0, -60:] = 0.1
    return step(gpu)


def _hung() -> Run:
    gpu = {name: values[:2] for name, values in training(4, _only(0, 1)).items()}
    gpu["sm"][0, -60:] = 0.1
    for name in ("engine", "sm", "utilisation"):
        gpu[name][1, -60:] = 0
    return step(gpu)


def _polling(stale: bool = False) -> Run:
    """A GPU polls in a collective for ten minutes: always active, always on 32 of 132 multiprocessors."""
    gpu = training(4)
    for name, level in (("engine", 1.0), ("sm", 0.2424), ("tensor", 0.0), ("dram", 0.0003)):
        gpu[name][1, 100:160] = gpu[name][1, 100] if stale else level
    return step(gpu)


def _at_its_limit(limit: float = LIMIT_W) -> Run:
    """Dense products: the GPUs draw what they may, and their clocks are a quarter lower than at most."""
    gpu = training(4)
    gpu["power"] = np.round(np.random.default_rng(3).normal(0.97 * limit, 5, (4, BINS)), 1)
    gpu["clock_sm"] = np.full((4, BINS), 1410.0)
    gpu["clock_events"] = np.full((4, BINS), 4.0)
    return step(gpu, facts={"power_limit": limit})


def _files(loaded: bool) -> Run:
    """Half an hour of small reads; then large ones, each of which takes longer; or as small ones, that take longer."""
    draw, second = np.random.default_rng(5), np.arange(BINS) >= 200
    noise = np.exp(draw.normal(0, 0.1, (2, BINS)))
    read = np.where(second & loaded, 8e8, 4e6)
    return step(
        nodes=2,
        host={"io_pressure": np.full((2, BINS), 0.05)},
        io={"wait": np.where(second, 0.012, 0.0008) * noise, "read": read * noise, "write": 1e4 * noise},
    )


def _losses(name: str, values: Array, more: dict[str, Array] | None = None) -> Run:
    at = np.linspace(20, 3590, len(values))
    return step(marks={name: (at, values)} | {key: (at, one) for key, one in (more or {}).items()})


def _falling(many: int, seed: int = 2) -> Array:
    noise = np.random.default_rng(seed).normal(0, 0.02, many)
    return np.asarray((0.5 + 6 * np.exp(-np.arange(many) / (many / 6))) * np.exp(noise))


def _twice(counted: bool) -> Run:
    """Two trainings one after the other in one step: the loss begins anew, and so does the count of its steps."""
    loss, steps = np.tile(_falling(150), 2), np.tile(np.arange(150.0), 2)
    return _losses("loss", loss, {"step": steps} if counted else {"step": np.arange(300.0)})


def _overfitting() -> Array:
    draw = np.random.default_rng(6)
    return np.asarray(np.concatenate([np.full(30, 0.5), np.linspace(0.5, 2.5, 20)]) + draw.normal(0, 0.01, 50))


def _drifting(name: str) -> Run:
    draw = np.random.default_rng(4)
    return _losses(name, np.linspace(1000, 600, 300) * (1 + draw.normal(0, 0.01, 300)))


GOOD: dict[str, Callable[[], Run]] = {
    "one GPU of four is used": lambda: step(training(4, _only(2))),
    "one GPU of four is used, without profiling": lambda: step(_unprofiled(training(4, _only(2)))),
    "two GPUs of four are used": lambda: step(training(4, _only(0, 1))),
    "no GPU is used": lambda: step(training(4, 0.0)),
    "no GPU is used, without profiling": lambda: step(_unprofiled(training(4, 0.0))),
    "a GPU of two is never used, and the other ends with small kernels": _small_kernels,
    "a GPU polls for ten minutes": _polling,
    "GPUs draw what they may": _at_its_limit,
    "large reads after small ones": lambda: _files(loaded=True),
    "the scale of a loss doubles": lambda: _losses("loss_scale", 2.0 ** np.repeat(np.arange(10, 16), 50)),
    "a loss of held-out data rises": lambda: _losses("val_loss", _overfitting()),
    "two trainings in a step": lambda: _twice(counted=True),
    "sequences get shorter": lambda: _drifting("tokens_per_sample"),
}
FAULTY: dict[str, Callable[[], Run]] = {
    "rank_hung": _hung,
    "stale_counters": lambda: _polling(stale=True),
    "throttling": lambda: _at_its_limit(450.0),
    "slow_file_system": lambda: _files(loaded=False),
    "loss_spike": lambda: _twice(counted=False),
    "throughput_drift": lambda: _drifting("tokens_per_second"),
}
