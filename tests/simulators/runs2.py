"""Another generator of steps, kept for acceptance: built from iterations, not from phases.

Committed before any detector. A run is a list of segments of any length: some iterations in a row, a checkpoint, an
evaluation. In an iteration each rank computes for as long as its part, its clock and its input take, and waits for the
slowest. What a GPU did is then integrated up to the moments at which each node samples: its own phase and jitter, and
means over what lies between.
Sensors are others than in runs.py: power that lags, heavy tails, whole degrees, GPUs of 400 W, up to eight a node. Of
runs.py it takes the tables and the names of faults with their effects, and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tests.simulators.runbase import PROFILED, START, Array, Run, Truth
from tests.simulators.runfaults import FAULTS

WATTS, IDLE, MHZ = 400.0, 55.0, 1410.0
_LEAST_S = {"checkpoint_stall": 5400, "loss_spike": 3600, "throughput_drift": 3600, "idle_tail": 1800,
            "memory_growth": 1800}  # fmt: skip
_SYNCHRONOUS = ("straggler", "rank_hung", "waiting_on_one")


@dataclass
class Job:
    """A run while it is made: segments (rows) by rank, and what hosts did in them."""

    draw: np.random.Generator
    fault: str
    effect: float
    nodes: int
    gpus: int
    seconds: float
    interval: float
    serving: bool
    truth: Truth
    lengths: list[float] = field(default_factory=list)
    work: list[Array] = field(default_factory=list)
    spin: list[Array] = field(default_factory=list)
    what: list[str] = field(default_factory=list)
    speed: list[float] = field(default_factory=list)

    @property
    def ranks(self) -> int:
        """GPUs of all nodes."""
        return self.nodes * self.gpus

    @property
    def now(self) -> float:
        """Seconds of the run so far."""
        return float(sum(self.lengths))

    def add(self, seconds: float, work: Array | float, spin: Array | float, what: str, speed: float = 0.0) -> None:
        """Append a segment."""
        self.lengths.append(seconds)
        self.work.append(np.broadcast_to(np.asarray(work, float), (self.ranks,)))
        self.spin.append(np.broadcast_to(np.asarray(spin, float), (self.ranks,)))
        self.what.append(what)
        self.speed.append(speed)


def make(seed: int, fault: str = "") -> Run:
    """Return the run of a seed."""
    draw = np.random.default_rng([seed, 77, 1 + list(FAULTS).index(fault) if fault else 0])
    chosen = FAULTS.get(fault)
    effect = chosen.effect * min(float(draw.uniform(1, 2.5)), chosen.most / chosen.effect) if chosen else 0.0
    nodes, gpus = int(draw.choice([1, 2, 2, 3, 5, 7])), int(draw.choice([2, 4, 8]))
    if fault in _SYNCHRONOUS:
        nodes = max(nodes, 2)
    if fault == "straggler":
        nodes = max(nodes, 3)
    seconds = float(np.exp(draw.uniform(np.log(max(_LEAST_S.get(fault, 1200), 300 if not fault else 1200)), 10.2)))
    interval = float(draw.choice([10, 10, 10, 15, 5]))
    interval = max(interval, np.ceil(seconds * nodes * gpus / 30_000))
    serving = not fault and draw.random() < 0.25
    job = Job(draw, fault, effect, nodes, gpus, seconds, float(interval), serving, Truth(fault, None, None, 0, seconds,
                                                                                       effect))  # fmt: skip
    (_serve if serving else _train)(job)
    return _sampled(job, seed)


def _serve(job: Job) -> None:
    """Requests come in trains; replicas take them as they are free."""
    draw, level = job.draw, 0.5
    job.add(draw.uniform(40, 200), 0.0, 0.0, "load")
    while job.now < job.seconds:
        level = float(np.clip(level + draw.normal(0, 0.12), 0.05, 0.95))
        each = np.clip(draw.beta(8 * level, 8 * (1 - level), job.ranks), 0, 1)
        job.add(float(draw.exponential(40) + 5), each, 0.0, "serve")


def _train(job: Job) -> None:
    draw, fault, ranks = job.draw, job.fault, job.ranks
    job.add(min(draw.uniform(40, 300), 0.12 * job.seconds), 0.0, 0.0, "load")
    share = draw.uniform(0.9, 1.0, job.nodes)[np.arange(ranks) // job.gpus] if draw.random() < 0.3 else np.ones(ranks)
    share = share * draw.normal(1, 0.006, ranks)  # of the work: stages are never quite even
    kernels, culprit = draw.uniform(0.88, 0.99), int(draw.integers(ranks))
    every, takes = draw.uniform(700, 2000), draw.uniform(10, 50)
    onset, next_save = float(job.seconds * draw.uniform(0.2, 0.5)), every
    stalls = int(draw.integers(1, 3))
    end = job.seconds * (1 - job.effect) if fault == "idle_tail" else job.seconds
    if fault == "idle_tail":
        end = min(end, job.seconds - 620)
    if fault == "rank_hung":
        end = job.seconds - max(job.effect, 12 * job.interval)
    if fault in ("straggler", "throughput_drift"):
        job.truth.start = onset
    if fault in ("straggler", "rank_hung", "waiting_on_one"):
        job.truth.node, job.truth.gpu = f"node-{culprit // job.gpus}", culprit % job.gpus
    if fault == "straggler" and draw.random() < 0.3:  # from the start
        onset = 0.0
    slower, saves, wander = np.ones(ranks), 0, 0.0
    while job.now < end:
        if job.now > next_save:
            saves += 1
            length = takes * draw.lognormal(0, 0.15)
            if fault == "checkpoint_stall" and saves == stalls:
                length = max(job.effect, 4 * job.interval)
                job.truth.start, job.truth.end = job.now, job.now + length
            job.add(length, 0.0, 0.0, "save")
            if draw.random() < 0.2:
                job.add(draw.uniform(20, 150), 0.5 * kernels, 0.1, "evaluate")
            next_save = job.now + every
            continue
        wander = 0.8 * wander + draw.normal(0, 0.008)
        length, rate = float(draw.uniform(8, 40)), 1 - abs(wander)
        if fault == "straggler" and job.now >= onset:
            slower[culprit] = 1 / (1 - job.effect)
        if fault == "throughput_drift" and job.now > onset:
            rate *= 1 - job.effect * ((job.now - onset) / (job.seconds - onset)) ** draw.uniform(0.8, 1.2)
        input_gap = 0.0
        if fault == "data_loader_gaps":  # the input of an iteration takes longer than the iteration before it
            input_gap = float(np.clip(job.effect + draw.normal(0, 0.06), 0.02, 0.95))
        needs = share * slower * draw.normal(1, 0.006, ranks)
        busy = kernels * needs / needs.max() * rate * (1 - input_gap)
        spins = np.clip(kernels * (1 - input_gap) - busy, 0, 1) if fault != "throughput_drift" else 0.0 * busy
        pace = rate * (1 - input_gap) / float(np.max(share * slower))
        job.add(length, busy, spins, "train", pace)
        if fault == "waiting_on_one" and len(job.lengths) % 4 == 0:
            alone = np.zeros(ranks)
            alone[culprit] = 0.7
            since = sum(job.lengths[-4:])
            job.add(since * job.effect / (1 - job.effect) * 1.05, alone, np.where(alone > 0, 0, 0.96), "alone")
    if fault == "idle_tail":
        job.truth.start = job.now
        job.add(max(job.seconds - job.now, 1.0), 0.0, 0.0, "nothing")
    if fault == "rank_hung":
        job.truth.start = job.now
        job.add(max(job.seconds - job.now, 1.0), 0.0, np.where(np.arange(ranks) == culprit, 0, 0.98), "hung")


def _sampled(job: Job, seed: int) -> Run:
    draw, ranks, gpus = job.draw, job.ranks, job.gpus
    edges = np.concatenate([[0.0], np.cumsum(job.lengths)])
    total = {"work": _integral(edges, job.work), "spin": _integral(edges, job.spin)}
    many = int(edges[-1] / job.interval)
    names = [f"node-{i}" for i in range(job.nodes)]
    tables: dict[str, list[dict[str, Any]]] = {name: [] for name in ("gpu", "host", "io", "net")}
    truth, faulty = job.truth, _window_of(job, edges)
    culprit = int(draw.integers(ranks))
    if job.fault in ("silent_counters", "stale_counters", "throttling"):
        truth.node, truth.gpu = names[culprit // gpus], culprit % gpus
    bad_node = int(draw.integers(job.nodes))
    if job.fault in ("link_retries", "slow_file_system", "memory_growth") and draw.random() < 0.7:
        truth.node = names[bad_node]
    profile = {"tensor": draw.uniform(0.2, 0.6), "dram": draw.uniform(0.2, 0.7), "sm": draw.uniform(0.7, 0.95)}
    limit, base = float(draw.choice([200e9, 500e9])), draw.uniform(0.1, 0.5)
    memory_rise, latency = draw.uniform(0.02, 0.2), draw.uniform(4e-4, 5e-3)
    watched = bool(draw.random() < 0.5)
    for node in range(job.nodes):
        at = np.clip(draw.uniform(0, job.interval) + job.interval * np.arange(many) + draw.normal(0, 0.05, many), 0,
                     edges[-1])  # fmt: skip
        at = np.sort(at[draw.random(many) > draw.uniform(0, 0.02)])
        span, when = np.diff(at), at[1:]
        names_of = np.asarray(job.what)[np.clip(np.searchsorted(edges, when - span / 2) - 1, 0, len(job.what) - 1)]
        in_fault = (when > faulty[0]) & (when <= faulty[1])
        for gpu in range(gpus):
            rank = node * gpus + gpu
            work, spin = (np.diff(np.interp(at, edges, total[name][:, rank])) / span for name in ("work", "spin"))
            mine = _gpu(job, work, spin, profile, span, in_fault if rank == culprit else np.zeros(len(when), bool))
            tables["gpu"].append({"node": np.full(len(when), node), "gpu": np.full(len(when), gpu), "time": when,
                                  "span": span, **mine})  # fmt: skip
        here = in_fault if truth.node in (None, names[node]) else np.zeros(len(when), bool)
        host = _host(job, when, span, names_of, here, (limit, base, memory_rise))
        power = sum(piece["power"] for piece in tables["gpu"][-gpus:])
        host["node_power"] = power + draw.normal(250, 3, len(when))
        common = {"node": np.full(len(when), node), "time": when, "span": span}
        tables["host"].append(common | host)
        slow = np.where(here & (job.fault == "slow_file_system"), job.effect, 1.0)
        saving = names_of == "save"
        load = np.clip(0.3 + draw.normal(0, 0.1, len(when)) + 0.35 * saving, 0.02, 0.8)
        tables["io"].append(common | {
            "wait": latency / (1 - load) * slow * draw.lognormal(0, 0.25, len(when)),
            "read": draw.lognormal(17, 1, len(when)), "write": np.where(saving, 1e9, 1e4),
            "read_operations": draw.gamma(3, 30, len(when)), "write_operations": np.where(saving, 300.0, 1.0),
            "metadata_operations": draw.gamma(1, 3, len(when))})  # fmt: skip
        lost = draw.poisson(0.05 * span) + draw.poisson(
            np.where(here & (job.fault == "link_retries"), job.effect, 0) * span * draw.gamma(4, 0.25, len(when))
        )
        tables["net"].append(common | {
            "rx": draw.gamma(4, 1e9, len(when)), "tx": draw.gamma(4, 1e9, len(when)), "retries": lost / span,
            "errors": np.zeros(len(when)), "stalled": draw.beta(1, 30, len(when))})  # fmt: skip
    done = {name: _table(pieces, names) for name, pieces in tables.items()}
    count = len(done["gpu"]["time"])
    done["gpu"]["uuid"] = (done["gpu"]["node"][0] * gpus + done["gpu"]["gpu"], [f"GPU-b{i:03d}" for i in range(ranks)])
    if draw.random() < 0.3:  # rows as they were written by node, and one node twice
        order = draw.permutation(count)
        done["gpu"] = {key: (value[0][order], value[1]) if isinstance(value, tuple) else value[order]
                       for key, value in done["gpu"].items()}  # fmt: skip
    for table, column, kind in (("io", "mount", "nfs"), ("net", "port", "infiniband")):
        size = len(done[table]["time"])
        done[table] |= {column: (np.zeros(size), ["/data" if table == "io" else "mlx5_0/1"]),
                        "kind": (np.zeros(size), [kind])}  # fmt: skip
    if not watched and job.fault not in ("loss_spike", "throughput_drift"):
        done["marks"] = {}
    else:
        done["marks"] = {} if job.serving else _marks(job, edges)
    facts = [{"uuid": "", "name": "NVIDIA A100", "memory": int(40e9), "power_limit": WATTS,
              "power_limit_default": WATTS, "clock_sm_max": MHZ}] * gpus  # fmt: skip
    meta = {"version": 1, "job": str(500_000 + seed % 400_000), "step": "0", "nodes": names, "start": START,
            "end": START + int(edges[-1] * 1e9), "interval": job.interval, "simulated": "tests/simulators/runs2.py",
            "devices": dict.fromkeys(names, facts)}  # fmt: skip
    return Run(meta, done, truth)


def _integral(edges: Array, values: list[Array]) -> Array:
    grown = np.cumsum(np.asarray(values) * np.diff(edges)[:, None], axis=0)
    return np.concatenate([np.zeros((1, grown.shape[1])), grown])


def _window_of(job: Job, edges: Array) -> tuple[float, float]:
    """Return from when until when sensors, ports, files or memory are at fault, and note it."""
    draw, end = job.draw, float(edges[-1])
    if job.fault in ("silent_counters", "stale_counters"):
        seconds = max(job.effect, (14 if job.fault == "silent_counters" else 25) * job.interval)
        first = float(edges[1]) + draw.uniform(0, max(1.0, end - float(edges[1]) - seconds - 60))
    elif job.fault in ("link_retries", "slow_file_system"):
        seconds = max(330, 14 * job.interval, 0.5 * end * draw.random())
        first = float(edges[1]) + draw.uniform(0, max(1.0, 0.95 * end - float(edges[1]) - seconds))
    elif job.fault == "memory_growth":
        first, seconds = end * draw.uniform(0, 0.3), end
    elif job.fault == "throttling":
        first, seconds = 0.0, end
    else:
        return (0.0, 0.0)
    job.truth.start, job.truth.end = first, min(end, first + seconds)
    return first, first + seconds


def _gpu(job: Job, work: Array, spin: Array, profile: dict[str, float], span: Array, bad: Array) -> dict[str, Array]:
    draw, many = job.draw, len(work)
    clock, held = np.full(many, draw.normal(1, 0.003)), np.zeros(many)
    high = (work > 0.8) & (draw.random(many) < 0.5)
    clock, held = np.where(high, clock * 0.95, clock), np.where(high, 0x4, held)
    if job.fault == "throttling" and bad.any():  # hot, and cool again
        depth = max(job.effect * 1.1, 0.25)
        period = int(draw.integers(10, 40))
        hot = (np.arange(many) % period) < np.ceil(period * job.effect * 1.1 / depth)
        clock = np.where(hot, clock * (1 - depth), clock)
        held = np.where(hot, 0x48, held)

    def seen(values: Array) -> Array:
        return np.round(np.clip(values * (1 + 0.006 * draw.standard_t(4, many)), 0, 1), 4)

    target = IDLE + (WATTS - IDLE) * np.clip(0.9 * work * clock + 0.28 * spin, 0, 1)
    power = target.copy()
    power[1:] = 0.85 * target[1:] + 0.15 * target[:-1]
    power = power + draw.normal(0, 4, many)
    nothing = work + spin < 0.01
    found = {
        "engine": seen(work + spin), "sm": seen(profile["sm"] * work + 0.06 * spin),
        "tensor": seen(profile["tensor"] * work), "dram": seen(profile["dram"] * work + 0.01 * spin),
        "occupancy": seen(0.3 * work), "fp64": np.zeros(many), "fp32": seen(0.08 * work),
        "utilisation": np.round(np.clip(np.where(nothing, 0, work + spin + 0.04), 0, 1), 2),
        "power": np.round(power, 1), "energy": np.cumsum(power * span),
        "temperature": np.round(28 + 45 * (power - IDLE) / (WATTS - IDLE) + draw.normal(0, 1)),
        "clock_sm": np.where(nothing, 210, np.round(MHZ * clock / 15) * 15), "clock_events": np.where(nothing, 1, held),
        "memory_used": np.full(many, 3.1e10), "xid": np.zeros(many),
    }  # fmt: skip
    if job.fault in ("silent_counters", "stale_counters") and bad.any():
        first = int(np.argmax(bad))
        for name in PROFILED:
            found[name][bad] = 0 if job.fault == "silent_counters" else found[name][first]
    return found


def _host(
    job: Job, when: Array, span: Array, what: Array, here: Array, memory: tuple[float, float, float]
) -> dict[str, Array]:
    draw, many = job.draw, len(when)
    limit, base, rise = memory
    progress = when / job.seconds
    anon = base + rise * np.minimum(1, progress * 6) ** 0.7 + 0.02 * (what == "save")
    anon = anon + 0.03 * ((when / 900) % 1) + draw.normal(0, 0.002, many)
    if job.fault == "memory_growth" and here.any():
        since = np.clip((when - job.truth.start) / (job.seconds - job.truth.start), 0, 1)
        leak = np.floor(since * 40) / 40  # it leaks when an epoch ends
        anon = np.minimum(anon, 0.97 - job.effect) + job.effect * 1.03 * leak
    busy = what == "train"
    pressure = {
        "io_pressure": np.where(what == "save", 0.4, 0.01),
        "cpu_pressure": np.full(many, draw.uniform(0, 0.06)),
    }
    if job.fault == "data_loader_gaps":
        which = "io_pressure" if job.truth.effect * 1000 % 2 < 1 else "cpu_pressure"
        pressure[which] = np.where(busy, job.effect * 0.75, pressure[which])
    if job.fault == "slow_file_system":
        pressure["io_pressure"] = np.where(here, 0.3, pressure["io_pressure"])
    noisy = {name: np.clip(values * draw.lognormal(0, 0.3, many), 0, 1) for name, values in pressure.items()}
    return noisy | {
        "cpu": draw.gamma(20, 1, many) * np.where(np.isin(what, ("nothing", "hung")), 0.05, 1),
        "cpu_throttled": np.zeros(many), "memory_anon": limit * np.clip(anon, 0, 0.985),
        "memory_limit": np.full(many, limit), "memory_file": limit * 0.3 * progress,
        "memory_pressure": np.zeros(many), "file_read": draw.gamma(2, 1e8, many),
        "file_write": np.where(what == "save", 1.5e9, 1e5), "processes": np.full(many, 40.0),
        "blocked": (draw.random(many) < np.where(what == "save", 0.4, 0.002)) * 1.0, "out_of_memory": np.zeros(many),
    }  # fmt: skip


def _marks(job: Job, edges: Array) -> dict[str, Any]:
    """Return what the application wrote: a line for each of its segments of training."""
    draw = job.draw
    mine = np.array([index for index, what in enumerate(job.what) if what == "train"])
    at, pace = edges[mine + 1], np.asarray(job.speed)[mine]
    done = np.cumsum(np.asarray(job.lengths)[mine] * pace)
    loss = 1.5 + 6 * np.exp(-done / (0.3 * done[-1])) + 0.05 * draw.standard_t(5, len(at))
    wave = np.zeros(len(at))
    for index in range(1, len(at)):
        wave[index] = 0.9 * wave[index - 1] + draw.normal(0, 0.01)
    loss = loss * np.exp(wave)
    if job.fault == "loss_spike":
        first = int(len(at) * draw.uniform(0.3, 0.85))
        job.truth.start = float(at[first])
        if draw.random() < 0.3:
            loss[first:] = np.inf if draw.random() < 0.5 else np.nan
        else:  # it climbs within a few lines, stays, and may come back
            climb = np.minimum(1, np.arange(1, len(at) - first + 1) / 3)
            stays = int(draw.integers(8, 40))
            back = np.where(np.arange(len(climb)) > stays, np.exp(-(np.arange(len(climb)) - stays) / 20), 1)
            loss[first:] *= 1 + (job.effect * 1.05 - 1) * climb * back
    speed = 5e4 * pace * draw.normal(1, 0.02, len(at))
    speed[0] *= 0.5
    names = ["train_loss", "tokens_per_second"]
    values = np.stack([loss, speed], axis=1).reshape(-1)
    times = START + (np.repeat(at, 2) * 1e9).astype(np.int64)
    codes = np.tile([0, 1], len(at))
    return {"time": times, "name": (codes, names), "value": values, "origin": (np.zeros(len(times)), ["tensorboard"])}


def _table(pieces: list[dict[str, Any]], names: list[str]) -> dict[str, Any]:
    joined = {key: np.concatenate([piece[key] for piece in pieces]) for key in pieces[0]}
    joined["time"] = START + (joined["time"] * 1e9).astype(np.int64)
    joined["node"] = (joined["node"], names)
    return joined
