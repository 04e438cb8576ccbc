"""A fleet that fails as fleets do: events of our kinds, and what was true. Committed before any rule was tuned on it.

2,000 nodes fail at 2e-5 an hour, each by itself; 1.2 % of them are lemons, which fail 20 times as often and which no
repair mends. Jobs of 1 to 512 nodes run on them; 5 % of the programs are broken, and die without any node's fault. On
top of it what makes the data hard: outages of a switch or a file system, maintenance, drains by others, XIDs that
programs cause, clocks that are wrong, records that are lost, come twice, or come days late.

Rates and shares that no study gives are guesses, said so below. A seed gives the same fleet, byte for byte.
"""

from __future__ import annotations

import dataclasses
import heapq
import random
from collections.abc import Iterator
from typing import Any

from piolet.events.envelope import FATAL, INFO, KERNEL, ROOT, SITE, USER, WARN, Event

HOUR, DAY = 3600.0, 86400.0
START = 1_790_000_000.0
CENTRAL = "c" * 16


@dataclasses.dataclass(frozen=True)
class Fleet:
    """What the fleet is like. Guesses: everything but nodes, rate, lemons, factor, largest and broken."""

    nodes: int = 2000
    days: float = 28.0
    rate: float = 2e-5
    lemons: float = 0.012
    factor: float = 20.0
    largest: int = 512
    broken: float = 0.05
    users: int = 60
    busy: float = 0.85
    heartbeat_h: float = 6.0
    outages_per_day: float = 0.1
    drains_per_day: float = 3.0
    maintenance_days: float = 30.0
    lost: float = 0.01
    twice: float = 0.02
    late: float = 0.02
    late_h: float = 48.0
    clocks_off: float = 0.01


@dataclasses.dataclass
class Truth:
    """What no rule sees.

    lemons     the names of the lemons
    failures   (time, node, what) of each failure of hardware
    broken     job -> uid, of jobs whose program was broken
    struck     jobs that a node's failure ended
    """

    lemons: set[str] = dataclasses.field(default_factory=set)
    failures: list[tuple[float, str, str]] = dataclasses.field(default_factory=list)
    broken: dict[int, int] = dataclasses.field(default_factory=dict)
    struck: set[int] = dataclasses.field(default_factory=set)


@dataclasses.dataclass
class _Job:
    number: int
    uid: int
    nodes: list[str]
    start: float
    end: float
    broken: str


# What fails, and how often of 100 failures: after the causes that arXiv 2410.21680 (figure 4) and the Llama 3 report
# (table 5, arXiv 2407.21783) name, rounded; that a fifth leaves no word but the dead step is a guess.
_FAILURES = (("gpu", 35), ("gpu_lost", 10), ("link", 15), ("memory", 10), ("hang", 10), ("silent", 20))
_FATAL_XIDS = (48, 79, 95, 119, 109, 62)


def simulate(seed: int, fleet: Fleet = Fleet()) -> tuple[list[tuple[float, Event]], Truth]:  # noqa: B008
    """Return (when the central service took it, event) in that order, and what was true."""
    return _Run(seed, fleet).run()


class _Run:
    def __init__(self, seed: int, fleet: Fleet) -> None:
        self.random = random.Random(seed)
        self.fleet = fleet
        self.names = [f"n{i:04d}" for i in range(fleet.nodes)]
        self.truth = Truth(set(self.random.sample(self.names, round(fleet.nodes * fleet.lemons))))
        self.end = START + fleet.days * DAY
        self.events: list[tuple[float, dict[str, Any]]] = []
        self.offsets = {name: self._offset() for name in self.names}

    def _offset(self) -> float:
        if self.random.random() < self.fleet.clocks_off:
            return self.random.choice((-1, 1)) * self.random.uniform(60, HOUR)
        return self.random.gauss(0, 0.3)

    def say(self, time: float, node: str, kind: str, source: str, **rest: Any) -> None:
        """Note an event at its true time."""
        if START <= time < self.end:
            self.events.append((time, {"node": node, "kind": kind, "source": source, **rest}))

    def run(self) -> tuple[list[tuple[float, Event]], Truth]:
        """Return everything."""
        failures = sorted(self._failures())
        self._background()
        jobs = self._jobs()
        for time, node, what in failures:
            self.truth.failures.append((time, node, what))
            self._fail(time, node, what, next((j for j in jobs if j.start <= time < j.end and node in j.nodes), None))
        for job in jobs:
            self._end(job)
        return self._delivered(), self.truth

    def _failures(self) -> Iterator[tuple[float, str, str]]:
        kinds, weights = zip(*_FAILURES, strict=True)
        for node in self.names:
            rate = self.fleet.rate * (self.fleet.factor if node in self.truth.lemons else 1.0) / HOUR
            habit = self.random.choices(kinds, weights)[0]
            time = START + self.random.expovariate(rate)
            while time < self.end:
                lemon = node in self.truth.lemons and self.random.random() < 0.6  # a lemon has its own defect
                what = habit if lemon else self.random.choices(kinds, weights)[0]
                yield time, node, what
                time += self.random.expovariate(rate)

    def _fail(self, time: float, node: str, what: str, job: _Job | None) -> None:
        draw = self.random
        gpu = f"gpu:GPU-{node}-{draw.randrange(8) if node not in self.truth.lemons else 3}"
        number = None if job is None else job.number
        if what == "gpu":
            xid = draw.choice(_FATAL_XIDS)
            for burst in range(draw.choice((1, 1, 1, 3, 12))):
                self.say(time + burst, node, "gpu.xid", KERNEL, severity=FATAL, subject=gpu, job=number,
                         body={"xid": xid, "pci": "0000:3b:00", "text": f"Xid {xid}"})  # fmt: skip
        elif what == "gpu_lost":
            self.say(time, node, "gpu.lost", ROOT, severity=FATAL, subject=gpu, body={"pci": "0000:3b:00"})
        elif what == "link":
            for flap in range(draw.randint(1, 6)):
                self.say(time + 400 * flap, node, "link.flap", KERNEL, severity=WARN, subject="port:mlx5_0/1",
                         body={"state": "down", "flaps": 1})  # fmt: skip
        elif what == "memory":
            self.say(time, node, "memory.ecc", KERNEL, severity=FATAL, body={"corrected": 0, "uncorrected": 1})
        elif what == "hang":
            self.say(time + 300, node, "slurm.node_state", SITE, body={
                "state": "down", "reason": "Not responding", "by": "slurm"})  # fmt: skip
        if job is not None:
            self.truth.struck.add(job.number)
            self._struck(job, node, time, what)
        if what != "silent":
            self._repaired(time, node, what)

    def _struck(self, job: _Job, node: str, time: float, what: str) -> None:
        job.end = time
        if what == "hang":
            self.say(time + 300, job.nodes[0], "slurm.job_end", SITE, job=job.number, uid=job.uid, run=0,
                     body={"state": "NODE_FAIL", "nodes": ",".join(job.nodes[:50])})  # fmt: skip
            return
        all_alike = self.random.random() < 0.3  # the others abort in their timeouts rather than being cancelled
        for other in job.nodes:
            first = other == node
            signal = (7 if what in ("gpu", "memory") else 6) if first else (6 if all_alike else 9)
            why = "signal" if first or all_alike else "cancelled"
            self.say(time + (2 if first else 2 + self.random.uniform(1, 60)), other, "step.outcome", USER,
                     job=job.number, step="0", run=0, uid=job.uid,
                     body={"task": 0, "status": None, "signal": signal, "why": why, "tasks": 8})  # fmt: skip

    def _repaired(self, time: float, node: str, what: str) -> None:
        draw = self.random
        drained = time + draw.uniform(0.5, 4) * HOUR
        mended = drained + draw.uniform(4, 48) * HOUR
        self.say(drained, node, "slurm.node_state", SITE, body={"state": "drain", "reason": what, "by": "operator"})
        if draw.random() < 0.7:
            self.say(mended, node, "site.repair", SITE, body={"text": what, "by": "operator", "ticket": "1"})
        self.say(mended - 600, node, "node.start", ROOT, body={"booted": mended - 700})
        self.say(mended + 600, node, "slurm.node_state", SITE, body={"state": "resume", "reason": "", "by": "operator"})

    def _background(self) -> None:
        draw, fleet = self.random, self.fleet
        for node in self.names:
            beat = START + draw.uniform(0, fleet.heartbeat_h) * HOUR
            while beat < self.end:
                self.say(beat, node, "node.heartbeat", ROOT, body={"uptime_s": beat - START})
                beat += fleet.heartbeat_h * HOUR
        time = START
        while (time := time + draw.expovariate(fleet.outages_per_day / DAY)) < self.end:
            if draw.random() < 0.5:
                first = draw.randrange(0, fleet.nodes, 32)
                for node in self.names[first : first + 32]:
                    for flap in range(draw.randint(1, 4)):
                        self.say(time + flap * 5, node, "link.flap", KERNEL, severity=WARN, subject="port:mlx5_0/1",
                                 body={"state": "down", "flaps": 1})  # fmt: skip
            else:
                for node in draw.sample(self.names, round(fleet.nodes * draw.uniform(0.3, 1))):
                    self.say(time + draw.uniform(0, 120), node, "fs.blocked", KERNEL, severity=WARN,
                             subject="fs:/scratch", body={"processes": 3, "seconds": 130})  # fmt: skip
        time = START
        while (time := time + draw.expovariate(fleet.drains_per_day / DAY)) < self.end:
            node = draw.choice(self.names)
            self.say(time, node, "slurm.node_state", SITE, body={"state": "drain", "reason": "test", "by": "alice"})
            self.say(time + HOUR, node, "slurm.node_state", SITE, body={"state": "resume", "reason": "", "by": "alice"})
        time = START + draw.uniform(0, fleet.maintenance_days) * DAY
        while time < self.end:
            for node in self.names:
                self.say(time, node, "slurm.node_state", SITE, body={"state": "drain", "reason": "upgrade", "by": "op"})
                self.say(time + HOUR, node, "node.start", ROOT, body={"booted": time + HOUR})
                self.say(time + 2 * HOUR, node, "slurm.node_state", SITE, body={"state": "resume", "by": "op"})
            time += fleet.maintenance_days * DAY

    def _jobs(self) -> list[_Job]:
        draw, fleet = self.random, self.fleet  # the scheduler knows of no failure: jobs go on where one is mended
        sizes = [2**k for k in range(20) if 2**k <= min(fleet.largest, fleet.nodes)]
        weights = [size**-0.5 for size in sizes]
        free = set(self.names)
        running: list[tuple[float, int]] = []
        jobs: list[_Job] = []
        time = START
        while time < self.end:
            used = fleet.nodes - len(free)
            size = draw.choices(sizes, weights)[0]
            if used >= fleet.busy * fleet.nodes or len(free) < size:
                if not running:
                    break
                time, number = heapq.heappop(running)
                free.update(jobs[number - 1].nodes)
                continue
            uid = 1000 + min(int(draw.paretovariate(0.8)) - 1, fleet.users - 1)
            broken = draw.choices(("", "everywhere", "somewhere"), (1 - fleet.broken, fleet.broken * 0.7,
                                                                     fleet.broken * 0.3))[0]  # fmt: skip
            length = draw.uniform(20, 900) if broken else min(draw.lognormvariate(9.3, 1.2), 5 * DAY)
            nodes = draw.sample(sorted(free), size)
            free.difference_update(nodes)
            jobs.append(_Job(len(jobs) + 1, uid, nodes, time, time + length, broken))
            heapq.heappush(running, (time + length, len(jobs)))
            time += draw.expovariate(1 / 60)
        return jobs

    def _end(self, job: _Job) -> None:
        if job.number in self.truth.struck:
            return
        draw = self.random
        if not job.broken:
            self.say(job.end, job.nodes[0], "slurm.job_end", USER, job=job.number, uid=job.uid, run=0,
                     body={"state": "COMPLETED", "status": 0})  # fmt: skip
            return
        self.truth.broken[job.number] = job.uid
        culprit = draw.choice(job.nodes)
        signal = draw.choice((11, 6, None))
        for node in job.nodes:
            mine = job.broken == "everywhere" or node == culprit
            self.say(job.end + draw.uniform(0, 5), node, "step.outcome", USER, job=job.number, step="0", run=0,
                     uid=job.uid, body={"task": 0, "status": 1 if mine and signal is None else None,
                                        "signal": signal if mine else 9, "tasks": 8,
                                        "why": "exit" if mine and signal is None else "signal" if mine
                                        else "cancelled"})  # fmt: skip
            if mine and draw.random() < 0.2:
                xid = draw.choice((13, 31))
                self.say(
                    job.end,
                    node,
                    "gpu.xid",
                    KERNEL,
                    severity=INFO,
                    job=job.number,
                    uid=job.uid,
                    subject=f"gpu:GPU-{node}-{draw.randrange(8)}",
                    body={"xid": xid, "text": "of a program"},
                )

    def _delivered(self) -> list[tuple[float, Event]]:
        draw, fleet = self.random, self.fleet
        self.events.sort(key=lambda one: one[0])
        numbers: dict[str, int] = {}
        away = {node: (START + draw.uniform(0, fleet.days) * DAY, draw.uniform(1, fleet.late_h) * HOUR)
                for node in self.names if draw.random() < fleet.late}  # fmt: skip
        told: list[tuple[float, int, Event]] = []
        for time, fields in self.events:
            node = fields["node"]
            mine = fields["source"] == SITE or fields["kind"] == "slurm.job_end"
            epoch = (
                CENTRAL if mine else f"{int(node[1:]):016x}" if fields["source"] != USER else f"{fields['uid']:08x}" * 2
            )
            stream = f"{node}/{epoch}"
            numbers[stream] = numbers.get(stream, 0) + 1
            if not mine and draw.random() < fleet.lost:
                continue
            offset = 0.0 if mine else self.offsets[node]
            event = Event(
                cluster="fleet", epoch=epoch, seq=numbers[stream], time=time + offset, offset=offset, **fields
            )
            received = time + draw.expovariate(1.0)
            begin, length = away.get(node, (0.0, 0.0))
            if not mine and begin <= time < begin + length:
                received = begin + length + draw.uniform(0, 60)
            told.append((received, len(told), event))
            if draw.random() < fleet.twice:
                told.append((received + draw.uniform(0, HOUR), len(told), event))
        told.sort(key=lambda one: one[:2])
        return [(received, event) for received, _, event in told]
