"""What sensors make of a run (runbase.py): counters, marks of the application, and what gets lost on the way."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.simulators.runbase import CLOCK_MHZ, IDLE_W, LIMIT_W, PROFILED, START, TRAIN, Array, Run, World, noise


def counters(made: World) -> None:
    """Fill `made.gpu`: what a GPU's counters say of what it did."""
    draw, plan, work, spin = made.draw, made.plan, made.work, made.spin
    shape = work.shape
    precise = plan.kind == "hpc"
    tensor, narrow = draw.uniform(0.25, 0.7) * (not precise), draw.uniform(0.02, 0.15)

    def sensed(values: Array) -> Array:
        return np.asarray(np.round(np.clip(values * (1 + noise(draw, shape, 0.006, 0.003)), 0, 1), 4))

    engine = sensed(work + spin)
    # nvidia-smi's figure is of whole percents, and of the last second of the sample.
    utilisation = np.round(np.clip(np.where(work + spin > 0.01, (work + spin) ** 0.5, 0) + noise(
        draw, shape, 0.01, 0.005) * (work > 0), 0, 1), 2)  # fmt: skip
    watts = IDLE_W + (LIMIT_W - IDLE_W) * (0.88 * work * (0.6 + 0.4 * made.clock) + 0.3 * spin)
    watts = np.minimum(np.round(watts * (1 + noise(draw, shape, 0.015, 0.01)), 1), LIMIT_W)
    heat = 30 + 38 * (watts - IDLE_W) / (LIMIT_W - IDLE_W) + draw.normal(0, 2, (shape[0], 1))
    heat = np.where(made.held & 0x60, np.maximum(heat, 87), heat)
    idle = (work + spin) < 0.01
    made.gpu = {
        "engine": engine,
        "sm": sensed(work * 0.85 + spin * narrow),
        "occupancy": sensed(work * 0.4 + spin * narrow * 0.5),
        "tensor": sensed(work * tensor),
        "fp64": sensed(work * 0.3 * precise),
        "fp32": sensed(work * 0.1),
        "dram": sensed(work * draw.uniform(0.2, 0.6) + spin * 0.02),
        "utilisation": utilisation,
        "memory_used": np.round(draw.uniform(0.3, 0.95) * 80e9 * np.ones(shape)),
        "power": watts,
        "energy": np.cumsum(watts * plan.interval, axis=1) + draw.uniform(1e6, 1e9),
        "temperature": np.round(heat),
        "clock_sm": np.where(idle, 0.3 * CLOCK_MHZ, np.round(CLOCK_MHZ * made.clock / 15) * 15),
        "clock_events": np.where(idle, 0x1, made.held).astype(float),
        "xid": np.zeros(shape),
    }
    made.host["node_power"] = 300 + watts.reshape(plan.nodes, -1, shape[1]).sum(axis=1) if plan.devices else (
        300 + 5 * made.host["cpu"])  # fmt: skip


def application(made: World) -> None:
    """Fill `made.marks`: what a training tells of itself. A loss falls, with noise and single outliers."""
    draw, plan = made.draw, made.plan
    if not plan.marks:
        return
    every = max(plan.interval, float(draw.choice([10, 30, 60])), plan.seconds / 1500)
    at = np.arange(every, plan.seconds, every)
    place = np.minimum((at / plan.interval).astype(int), plan.samples - 1)
    at = at[made.phase[place] == TRAIN]
    place = np.minimum((at / plan.interval).astype(int), plan.samples - 1)
    if len(at) < 3:
        return
    done = np.cumsum(made.pace[place]) * every
    first, last = draw.uniform(2.5, 11), draw.uniform(0.4, 2.3)
    loss = last + (first - last) * (1 + done / draw.uniform(60, 1500)) ** -draw.uniform(0.3, 1.0)
    loss = loss * np.exp(draw.normal(0, draw.uniform(0.01, 0.06), len(at)))
    loss = loss * np.where(draw.random(len(at)) < 0.005, draw.uniform(1.1, 1.6), 1)
    speed = draw.uniform(2e3, 2e5) * made.pace[place] * (1 + draw.normal(0, draw.uniform(0.01, 0.05), len(at)))
    speed[: max(1, len(at) // 50)] *= draw.uniform(0.3, 0.9)
    made.marks = {
        str(draw.choice(["loss", "train_loss", "train/loss"])): (at, loss),
        "tokens_per_second": (at, speed),
        "step": (at, np.floor(done / 2)),
    }
    if draw.random() < 0.3:
        made.marks["val_loss"] = (at[::20], loss[::20] * 1.05)


def finished(made: World, seed: int) -> Run:
    """Return the run as tables, with what gets lost and mixed up."""
    plan, draw = made.plan, made.draw
    nodes = [f"nid{i:06d}" for i in range(1, plan.nodes + 1)]
    dt = int(plan.interval * 1e9)
    ends = START + dt * np.arange(1, plan.samples + 1)
    there = np.ones((plan.nodes, plan.samples), bool)
    gaps: list[tuple[int, int, int]] = []
    if draw.random() < 0.5:
        there &= draw.random(there.shape) >= draw.uniform(0, 0.03)
    for _ in range(int(draw.integers(0, 3))):
        node, first = int(draw.integers(plan.nodes)), int(draw.integers(plan.samples))
        last = min(plan.samples, first + 1 + int(draw.integers(max(2, plan.samples // 25))))
        there[node, first:last] = False
        gaps.append((node, first, last))
    offsets = draw.normal(0, 0.3, plan.nodes) * 1e9
    late = (draw.random(there.shape) * 0.02 * dt).astype(np.int64) + offsets.astype(np.int64)[:, None]
    tables: dict[str, dict[str, Any]] = {}
    shuffled, twice = draw.random() < 0.3, draw.random() < 0.1

    def rows(owner: Array, values: dict[str, Array], more: dict[str, Array]) -> dict[str, Any]:
        mask = there[owner]
        who, when = np.nonzero(mask.T)[::-1]  # as they come: by time
        if shuffled and len(who) > 20:
            order = np.argsort(np.arange(len(who)) + draw.integers(-30, 30, len(who)), kind="stable")
            who, when = who[order], when[order]
        if twice and len(who) > 20:
            again = draw.integers(0, len(who), len(who) // 50 + 1)
            who, when = np.concatenate([who, who[again]]), np.concatenate([when, when[again]])
        found = {name: array[who, when] for name, array in values.items()}
        found |= {"time": ends[when] + late[owner[who], when], "span": np.full(len(who), plan.interval)}
        found |= {"node": (owner[who], nodes)}  # type: ignore[dict-item]
        return found | {name: array[who] for name, array in more.items()}

    if plan.devices:
        left_out = (() if plan.profiled else PROFILED) + (() if plan.clocks else ("clock_sm", "clock_events"))
        gpu = {name: array for name, array in made.gpu.items() if name not in left_out}
        device = np.arange(plan.devices)
        tables["gpu"] = rows(device // plan.gpus, gpu, {"gpu": device % plan.gpus})
        codes = tables["gpu"]["node"][0] * plan.gpus + tables["gpu"]["gpu"]
        tables["gpu"]["uuid"] = (codes, [f"GPU-{seed:08x}-{i:04d}" for i in range(plan.devices)])
    tables["host"] = rows(np.arange(plan.nodes), made.host, {})
    for table, column, source in (("io", "mount", made.io), ("net", "port", made.net)):
        pieces = [(name, rows(np.arange(plan.nodes), values, {})) for name, values in source.items()]
        if pieces:
            tables[table] = _joined(pieces, column, nodes)
    if "io" in tables:
        many = len(tables["io"]["time"])
        tables["io"] |= {"kind": (np.zeros(many), ["lustre"]), "scope": (np.zeros(many), ["node"])}
    if "net" in tables:
        many = len(tables["net"]["time"])
        tables["net"] |= {"kind": (np.zeros(many), ["cxi"]), "rate": np.full(many, 25e9)}
    tables["marks"] = _marks(made)
    tables["events"] = {key: [event.get(key) for event in made.events] for key in (
        "node", "subject", "kind", "source", "severity", "text", "body")} if made.events else {}  # fmt: skip
    if made.events:
        tables["events"]["time"] = np.array([START + int(event["at"] * 1e9) for event in made.events])
    if gaps:
        tables["quality"] = {
            "node": [nodes[node] for node, _, _ in gaps], "source": ["sampler"] * len(gaps),
            "start": np.array([START + dt * first for _, first, _ in gaps]),
            "end": np.array([START + dt * last for _, _, last in gaps]),
            "reason": ["the sampler was restarted"] * len(gaps), "values": [last - first for _, first, last in gaps],
        }  # fmt: skip
    device_facts = [{"uuid": "", "name": "NVIDIA H100", "memory": int(80e9), "power_limit": LIMIT_W,
                     "power_limit_default": LIMIT_W, "clock_sm_max": CLOCK_MHZ}] * plan.gpus  # fmt: skip
    meta = {
        "version": 1, "cluster": "made", "job": str(100_000 + seed % 900_000), "step": "0", "uid": 1000,
        "user": "ada", "nodes": nodes, "start": START, "end": START + plan.samples * dt, "interval": plan.interval,
        "state": "COMPLETED", "simulated": "tests/simulators/runs.py",
        "devices": dict.fromkeys(nodes, device_facts) if plan.devices else {},
        "clock_offsets": {node: float(offset / 1e9) for node, offset in zip(nodes, offsets, strict=True)},
    }  # fmt: skip
    return Run(meta, tables, made.truth)


def _joined(pieces: list[tuple[str, dict[str, Any]]], column: str, nodes: list[str]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    names = [name for name, _ in pieces]
    for key in pieces[0][1]:
        parts = [piece[key][0] if key == "node" else piece[key] for _, piece in pieces]
        result[key] = (np.concatenate(parts), nodes) if key == "node" else np.concatenate(parts)
    sizes = [len(piece["time"]) for _, piece in pieces]
    result[column] = (np.repeat(np.arange(len(names)), sizes), names)
    return result


def _marks(made: World) -> dict[str, Any]:
    if not made.marks:
        return {}
    names = list(made.marks)
    times = np.concatenate([START + (at * 1e9).astype(np.int64) for at, _ in made.marks.values()])
    sizes = [len(at) for at, _ in made.marks.values()]
    order = np.argsort(times, kind="stable")
    codes = np.repeat(np.arange(len(names)), sizes)[order]
    values = np.concatenate([value for _, value in made.marks.values()])[order]
    return {"time": times[order], "name": (codes, names), "value": values,
            "origin": (np.zeros(len(times)), ["output"])}  # fmt: skip
