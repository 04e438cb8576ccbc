"""The faults of made runs (runs.py), each with the effect at which a detector has to find it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tests.simulators.runbase import CHECKPOINT, END, PROFILED, TRAIN, Array, Plan, Truth, World, noise

Deed = Callable[[World, float], None]
Phases = Callable[[np.random.Generator, Plan, Array, Truth], Array]


@dataclass(frozen=True)
class Fault:
    """A fault: its least effect and unit, and what is done.

    most    the largest effect
    needs   what the plan of its run has to have
    phases  changes the phases; deed: what was done; sense: what sensors and the application say
    """

    effect: float
    unit: str
    most: float = 1e9
    needs: dict[str, Any] = field(default_factory=dict)
    phases: Phases | None = None
    deed: Deed | None = None
    sense: Deed | None = None


def _window(made: World, seconds: float, least: int) -> tuple[int, int]:
    """Return a window of training of about so many seconds, and note it."""
    plan, draw = made.plan, made.draw
    many = min(plan.samples - 2, max(least, int(np.ceil(seconds / plan.interval))))
    training = np.flatnonzero(made.phase == TRAIN)
    first = int(min(draw.choice(training), plan.samples - many))
    made.truth.start, made.truth.end = first * plan.interval, (first + many) * plan.interval
    return first, first + many


def _where(made: World, device: int) -> None:
    made.truth.node = f"nid{device // made.plan.gpus + 1:06d}"
    made.truth.gpu = device % made.plan.gpus


def _some(made: World) -> Array:
    """Return one GPU, or all of one node."""
    device = int(made.draw.integers(made.plan.devices))
    _where(made, device)
    if made.draw.random() < 0.3:
        node = device // made.plan.gpus
        made.truth.gpu = None
        return np.arange(node * made.plan.gpus, (node + 1) * made.plan.gpus)
    return np.array([device])


def _silenced(made: World, effect: float) -> None:
    # They read 0, and no error: NVIDIA/DCGM issue 303.
    first, last = _window(made, effect, 12)
    devices = _some(made)
    for name in PROFILED:
        made.gpu[name][devices, first:last] = 0


def _stale(made: World, effect: float) -> None:
    first, last = _window(made, effect, 25)
    if made.draw.random() < 0.3:
        node = int(made.draw.integers(made.plan.nodes))
        made.truth.node, made.truth.gpu = f"nid{node + 1:06d}", None
        made.host["node_power"][node, first:last] = made.host["node_power"][node, first]
        return
    devices = _some(made)
    for name in PROFILED:
        made.gpu[name][devices, first:last] = made.gpu[name][devices, first][:, None]


def _tail(draw: np.random.Generator, plan: Plan, phase: Array, truth: Truth) -> Array:
    seconds = max(600.0, truth.effect * plan.seconds)
    phase[-int(seconds / plan.interval) - 1 :] = END
    truth.start = plan.seconds - seconds
    return phase


def _quiet(made: World, _: float) -> None:
    made.host["cpu"] = np.where(made.phase == END, made.draw.uniform(0, 1.2), made.host["cpu"])
    made.host["file_write"] = np.where(made.phase == END, 1e4, made.host["file_write"])
    made.host["io_pressure"] = np.where(made.phase == END, 0.005, made.host["io_pressure"])


def _gaps(made: World, effect: float) -> None:
    training = made.phase == TRAIN
    share = np.clip(effect * (1 + noise(made.draw, (1, len(training)), 0.1, 0.1)[0]), 0.05, 0.95)
    lost = np.where(training, share, 0)
    made.work *= 1 - lost
    made.spin *= 1 - lost
    made.pace = made.pace * (1 - lost)
    which = "io_pressure" if made.draw.random() < 0.5 else "cpu_pressure"
    waits = np.clip(lost * made.draw.uniform(0.5, 1.0) * (1 + noise(made.draw, made.host["cpu"].shape, 0.1, 0.1)), 0, 1)
    made.host[which] = np.where(training, np.maximum(made.host[which], waits), made.host[which])


def _stall(draw: np.random.Generator, plan: Plan, phase: Array, truth: Truth) -> Array:
    edges = np.flatnonzero(np.diff((phase == CHECKPOINT).astype(int)) == 1) + 1
    if not len(edges):
        edges = np.array([plan.samples // 2])
    if draw.random() < 0.6 or len(edges) < 3:  # one of them
        first = int(draw.choice(edges))
        last = min(plan.samples, first + max(4, int(np.ceil(truth.effect / plan.interval))))
        phase[first:last] = CHECKPOINT
        truth.start, truth.end = first * plan.interval, last * plan.interval
        return phase
    takes = max(4, int(np.ceil(truth.effect / plan.interval)))
    for first in edges:
        phase[first : first + takes] = CHECKPOINT
    truth.start, truth.end = float(edges[0] * plan.interval), plan.seconds
    return phase


def _straggle(made: World, effect: float) -> None:
    plan, draw = made.plan, made.draw
    device = int(draw.integers(plan.devices))
    _where(made, device)
    others = np.arange(plan.devices) != device
    late = draw.random() < 0.5
    first = int(plan.samples * draw.uniform(0.2, 0.5)) if late else 0
    made.truth.start = first * plan.interval
    when = (np.arange(plan.samples) >= first) & (made.phase == TRAIN)
    mode = draw.choice(["clock", "slow", "host"])
    if mode == "slow" and not late and plan.nodes < 3:
        mode = "clock"
    if mode == "host":
        node = device // plan.gpus
        made.truth.gpu = None
        others = np.arange(plan.devices) // plan.gpus != node
        which = "cpu_throttled" if draw.random() < 0.5 else "cpu_pressure"
        made.host[which][node] = np.where(when, draw.uniform(0.3, 0.8), made.host[which][node])
        mine = np.ix_(~others, when)
        made.work[mine] *= 1 - effect
        made.spin[mine] *= 1 - effect
    lost = made.work[np.ix_(others, when)] * effect
    made.work[np.ix_(others, when)] -= lost
    made.spin[np.ix_(others, when)] = np.minimum(made.spin[np.ix_(others, when)] + 0.95 * lost, 1)
    made.pace = np.where(when, made.pace * (1 - effect), made.pace)
    if mode == "clock":
        made.clock[device] = np.where(when, made.clock[device] * (1 - effect), made.clock[device])


def _throttle(made: World, effect: float) -> None:
    plan, draw = made.plan, made.draw
    lost = max(effect, draw.uniform(0.2, 0.6))
    share = min(1.0, effect / lost)
    some = _some(made)
    knots = max(2, plan.samples // 6)
    blocks = np.repeat(draw.random(knots) < share, -(-plan.samples // knots))[: plan.samples]
    if share < 1 and not blocks.mean() >= 0.9 * share:
        blocks = (np.arange(plan.samples) % 20) < 20 * share
    at = np.ix_(some, blocks)
    dice = draw.random()
    if dice < 0.6:
        made.held[at] |= int(draw.choice([0x20, 0x48, 0x40]))
    elif dice < 0.8:
        made.held[at] |= 0x88  # the brake of the power supply
    else:  # a power limit that somebody has lowered: it holds all the time
        lost, at = max(lost, 0.3), np.ix_(some, np.ones(plan.samples, bool))
        made.held[at] |= 0x4
    made.clock[at] *= 1 - lost


def _retries(made: World, effect: float) -> None:
    plan, draw = made.plan, made.draw
    first, last = _window(made, max(300, draw.uniform(300, 3000)), 12)
    node, port = int(draw.integers(plan.nodes)), str(draw.choice(list(made.net)))
    made.truth.node = f"nid{node + 1:06d}"
    if draw.random() < 0.3:
        at = made.truth.start + draw.uniform(0, 200, 3)
        made.events += [{"at": float(x), "node": made.truth.node, "subject": f"port:{port}", "kind": "link.flap",
                         "source": "kernel", "severity": "warning", "text": f"{port} went down",
                         "body": '{"state": "down", "flaps": 1}'} for x in at]  # fmt: skip
    rate = effect * np.exp(noise(draw, (1, last - first), 0.4, 0.3)[0])
    made.net[port]["retries"][node, first:last] += rate
    made.net[port]["stalled"][node, first:last] = np.clip(made.net[port]["stalled"][node, first:last] + 0.2, 0, 1)


def _slow_files(made: World, effect: float) -> None:
    plan, draw = made.plan, made.draw
    least = 300 / plan.seconds
    first, last = _window(made, plan.seconds * draw.uniform(least, max(least, 0.5)), 12)
    mount = str(draw.choice(list(made.io)))
    nodes = np.arange(plan.nodes)
    if plan.nodes > 1 and draw.random() < 0.4:
        nodes = nodes[int(draw.integers(plan.nodes)) :][:1]
        made.truth.node = f"nid{nodes[0] + 1:06d}"
    made.io[mount]["wait"][nodes, first:last] *= effect
    made.io[mount]["read_operations"][nodes, first:last] /= effect**0.5
    pressure = made.host["io_pressure"][nodes, first:last]
    made.host["io_pressure"][nodes, first:last] = np.clip(pressure + draw.uniform(0.1, 0.5), 0, 1)


def _grow(made: World, effect: float) -> None:
    plan, draw = made.plan, made.draw
    first = int(plan.samples * draw.uniform(0, 0.3))
    made.truth.start = first * plan.interval
    nodes = np.arange(plan.nodes)
    if draw.random() < 0.5:
        nodes = nodes[int(draw.integers(plan.nodes)) :][:1]
        made.truth.node = f"nid{nodes[0] + 1:06d}"
    ramp = np.clip((np.arange(plan.samples) - first) / (plan.samples - first), 0, 1)
    limit, anon = made.host["memory_limit"], made.host["memory_anon"]
    room = 0.98 - effect
    scaled = np.where(anon / limit > room, room, anon / limit)
    anon[nodes] = (limit * (scaled + effect * ramp))[nodes]


def _spike(made: World, effect: float) -> None:
    draw = made.draw
    name = next(name for name in made.marks if "loss" in name)
    at, loss = made.marks[name]
    first = int(len(at) * draw.uniform(0.3, 0.9))
    made.truth.start = float(at[first])
    if draw.random() < 0.4:
        loss[first:] = np.nan
        return
    many = int(draw.integers(6, 60))
    if draw.random() < 0.5:
        loss[first:] *= effect  # it does not come back
    else:
        fade = (effect - 1) * np.exp(-np.arange(len(loss) - first) / many)
        loss[first:] *= 1 + np.where(np.arange(len(fade)) < 6, effect - 1, fade)


def _drift(made: World, effect: float) -> None:
    plan = made.plan
    first = int(plan.samples * made.draw.uniform(0.1, 0.4))
    made.truth.start = first * plan.interval
    ramp = 1 - effect * np.clip((np.arange(plan.samples) - first) / (plan.samples - first), 0, 1)
    made.work *= ramp.astype(np.float32)
    made.pace = made.pace * ramp


def _hang(made: World, effect: float) -> None:
    plan, draw = made.plan, made.draw
    many = min(plan.samples - 12, max(12, int(np.ceil(effect / plan.interval))))
    first = plan.samples - many
    made.truth.start = first * plan.interval
    hung = _some(made)
    if len(hung) >= plan.devices:
        hung = hung[:1]
        _where(made, int(hung[0]))
    made.phase[first:] = TRAIN
    made.work[:, first:] = 0
    made.spin[:, first:] = np.float32(draw.uniform(0.95, 1.0))
    made.spin[hung, first:] = 0
    made.pace[first:] = 0
    made.clock[:, first:], made.held[:, first:] = 1, 0
    if draw.random() < 0.3:
        made.host["blocked"][hung[0] // plan.gpus, first:] = 1
    for name, low in (("io_pressure", 0.0), ("cpu_pressure", 0.01)):
        made.host[name][:, first:] = low


def _wait(made: World, effect: float) -> None:
    plan, draw = made.plan, made.draw
    device = 0 if draw.random() < 0.7 else int(draw.integers(plan.devices))
    _where(made, device)
    on = max(2, int(draw.uniform(30, 300) / plan.interval))
    period = max(on + 1, int(on / effect))
    alone = ((np.arange(plan.samples) + int(draw.integers(period))) % period < on) & (made.phase == TRAIN)
    others = np.arange(plan.devices) != device
    made.spin[np.ix_(others, alone)] = np.float32(0.97 if draw.random() < 0.6 else 0.0)
    made.work[np.ix_(others, alone)] = 0
    made.work[device, alone] = np.clip(made.work[device, alone], 0.5, 1)
    made.pace = np.where(alone, 0.0, made.pace)


_SYNCHRONOUS = {"kind": "training", "least_gpus": 2}
FAULTS = {
    "silent_counters": Fault(180, "s", needs={"kind": "training", "profiled": True, "least_s": 600}, sense=_silenced),
    "stale_counters": Fault(300, "s", needs={"kind": "training", "profiled": True, "least_s": 1200}, sense=_stale),
    "idle_tail": Fault(0.15, "1", 0.6, {"kind": "training", "least_s": 1800}, phases=_tail, deed=_quiet),
    "data_loader_gaps": Fault(0.25, "1", 0.7, {"kind": "training", "least_s": 900}, deed=_gaps),
    "checkpoint_stall": Fault(240, "s", needs={"kind": "training", "least_s": 5400}, phases=_stall),
    "straggler": Fault(0.15, "1", 0.5, _SYNCHRONOUS | {
        "least_nodes": 2, "profiled": True, "clocks": True, "least_s": 1200}, deed=_straggle),
    "throttling": Fault(0.05, "1", 0.4, {"kind": "training", "clocks": True, "least_s": 900}, deed=_throttle),
    "link_retries": Fault(10, "1/s", needs={"kind": "training", "net": True, "least_s": 900}, deed=_retries),
    "slow_file_system": Fault(6, "times", needs={"kind": "training", "io": True, "least_s": 1200}, deed=_slow_files),
    "memory_growth": Fault(0.2, "1", 0.7, {"least_s": 1800}, deed=_grow),
    "loss_spike": Fault(2, "times", needs={"kind": "training", "marks": True, "least_s": 3600}, sense=_spike),
    "throughput_drift": Fault(0.15, "1", 0.4, {"kind": "training", "marks": True, "least_s": 3600}, deed=_drift),
    "rank_hung": Fault(300, "s", needs=_SYNCHRONOUS | {"least_s": 1200}, deed=_hang),
    "waiting_on_one": Fault(0.2, "1", 0.6, _SYNCHRONOUS | {"least_nodes": 2, "least_s": 1200}, deed=_wait),
}  # fmt: skip
