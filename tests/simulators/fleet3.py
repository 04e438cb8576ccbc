"""A third fleet, for acceptance: here causes fail, and not nodes. Committed before any rule for trains was written.

The rates are those of `fleet` (2e-5 failures of a node in an hour, 1.2 % lemons at 20 times that); how they come about
is not. A cause begins on a node at random. What is transient fails once. A part that is bad fails again and again,
until somebody notices it, takes the node out, and mends the right thing: at first perhaps it is only booted, or a good
part is changed, and the node fails again after days of work. A lemon is where new causes begin 20 times as often,
whatever is mended. One failure says several things at once (XID, GPU lost, port down, not responding). Beside these,
more nodes than one have causes that are none of their own: a line card of a switch, the cooling of a rack, a driver
that is rolled out and back, a user whose program takes nodes down until he gives up.

What it stands on: times between failures have a hazard that decreases, and repairs take lognormal times (Schroeder and
Gibson, A Large-Scale Study of Failures in High-Performance Computing Systems, DSN 2006, TDSC 2010: Weibull, shape 0.7
to 0.8); a node that failed fails again much sooner than others, within days and up to a month (El-Sayed and Schroeder,
Reading Between the Lines of Failure Logs, DSN 2013); most parts that were mended do not fail alike again, some do many
times, and batches of machines fail together (Wang, Zhang and Xu, What Can We Learn from Four Years of Data Center
Hardware Failures?, DSN 2017); random causes and systematic ones, and repairs that do not succeed (AIReSim, arXiv
2603.07041); errors that one GPU's failure brings with it, GSP above all (arXiv 2503.11901). All numbers are guesses
within what these say. Seeds 3001 to 3020 are for acceptance, and for nothing else; so are 101 to
120 of `fleet` and 1021 to 1040 of `fleet2`.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Iterator
from typing import Any

from piolet.events.envelope import FATAL, INFO, KERNEL, ROOT, SITE, USER, WARN, Event

from tests.simulators.fleet import CENTRAL, DAY, HOUR, START, Fleet, Truth

_CHASSIS, _RACK = 8, 48
_TRANSIENT = 0.6  # of causes: gone when the node is booted
_NOTICED, _BOOTED_FIRST, _MENDED = 0.8, 0.4, 0.8  # of failures; of first looks; of changes of a part
_AGAIN_H, _SHAPE = 96.0, 0.7  # hours of work until a part that is not mended fails again: mean, and Weibull's shape
_OUT_H, _OUT_SPREAD = 30.0, 1.1  # hours out of service: median, and the deviation of its logarithm
_A_BAD_PART = 1 + (1 - _NOTICED * (1 - _BOOTED_FIRST) * _MENDED) / (_NOTICED * _MENDED)
_BATCH = 300.0

# What is seen of a failure. "xid" and the like come together; "quiet" leaves nothing but a dead step.
_KINDS = (("gpu", 30), ("bus", 14), ("gsp", 8), ("memory", 10), ("port", 10), ("board", 8), ("quiet", 20))
_XIDS = {"gpu": (48, 62, 95, 109), "bus": (79,), "gsp": (119,)}


@dataclasses.dataclass
class Causes(Truth):
    """What no rule sees, with what failures have in common.

    causes   (node, when it began, times of its failures, what is seen), of nodes' own causes
    shared   (time, node, what) of what befell a node for a cause outside of it: switch, cooling, driver, program
    """

    causes: list[tuple[str, float, list[float], str]] = dataclasses.field(default_factory=list)
    shared: list[tuple[float, str, str]] = dataclasses.field(default_factory=list)


def simulate(seed: int, fleet: Fleet = Fleet()) -> tuple[list[tuple[float, Event]], Causes]:  # noqa: B008
    """Return (when the central service took it, event) in that order, and what was true, as `fleet.simulate` does."""
    return _Site(seed, fleet).run()


class _Site:
    def __init__(self, seed: int, fleet: Fleet) -> None:
        self.draw = random.Random(f"fleet3 {seed}")
        self.fleet = fleet
        self.names = [f"x{1000 + i // _RACK}c{i % _RACK // _CHASSIS}s{i % _CHASSIS}" for i in range(fleet.nodes)]
        self.truth = Causes(set(self.draw.sample(self.names, round(fleet.nodes * fleet.lemons))))
        self.end = START + fleet.days * DAY
        self.said: list[tuple[float, int, dict[str, Any]]] = []
        self.jobs = 0

    def say(self, time: float, node: int, kind: str, source: str, **rest: Any) -> None:
        """Note an event at its true time."""
        if START <= time < self.end:
            self.said.append((time, len(self.said), {"node": self.names[node], "kind": kind, "source": source, **rest}))

    def state(self, time: float, node: int, state: str, reason: str = "", by: str = "slurm") -> None:
        """Note a state of Slurm's."""
        self.say(time, node, "slurm.node_state", SITE, body={"state": state, "reason": reason, "by": by})

    def run(self) -> tuple[list[tuple[float, Event]], Causes]:
        """Return everything."""
        fleet, mean = self.fleet, _TRANSIENT + (1 - _TRANSIENT) * _A_BAD_PART
        for node, name in enumerate(self.names):
            rate = fleet.rate * (fleet.factor if name in self.truth.lemons else 1.0) / mean
            begin = START - 60 * DAY  # some causes are older than the records
            while (begin := begin + self.draw.expovariate(rate / HOUR)) < self.end:
                self._cause(node, begin)
        self._switches()
        self._racks()
        self._drivers()
        self._programs()
        self._broken()
        self._life()
        return self._delivered(), self.truth

    # Causes on a node.

    def _cause(self, node: int, begin: float) -> None:
        draw = self.draw
        what = draw.choices(*zip(*_KINDS, strict=True))[0]
        device, failed, looks, at = draw.randrange(8), [], 0, begin
        transient = draw.random() < _TRANSIENT
        while at < self.end:
            if at >= START:
                failed.append(at)
                self.truth.failures.append((at, self.names[node], what))
            back = self._seen(at, node, what, device)
            noticed = draw.random() < _NOTICED
            mended = False
            if noticed:
                changed = looks > 0 or draw.random() >= _BOOTED_FIRST
                back = self._looked_at(at, node, what, changed and not transient)
                looks += 1
                mended = changed and draw.random() < _MENDED
            if transient or mended:
                break
            at = back + draw.weibullvariate(_AGAIN_H / math.gamma(1 + 1 / _SHAPE), _SHAPE) * HOUR
        if failed:
            self.truth.causes.append((self.names[node], begin, failed, what))

    def _looked_at(self, at: float, node: int, what: str, changed: bool) -> float:
        """Take a node out, do something to it, and return when it is back."""
        draw = self.draw
        out = at + draw.uniform(0.2, 8) * HOUR
        back = out + min(draw.lognormvariate(math.log(_OUT_H), _OUT_SPREAD), 1440) * HOUR
        self.state(out, node, "drain", f"{what}?", "operator")
        if changed and draw.random() < 0.8:  # people forget to say so
            self.say(back - 0.3 * HOUR, node, "site.repair", SITE, body={"text": "changed", "by": "hands"})
        self.say(back - 0.2 * HOUR, node, "node.start", ROOT, body={"booted": back - 0.21 * HOUR})
        self.state(back, node, "resume", by="operator")
        return back

    def _seen(self, at: float, node: int, what: str, device: int) -> float:
        """Say what is seen of a failure; return when the node works again if nobody does anything."""
        draw, gpu, back = self.draw, f"gpu:GPU-{node:04x}-{device}", at
        if what in _XIDS:
            for again in range(draw.choice((1, 1, 2, 5, 20))):
                self.say(at + 40 * again, node, "gpu.xid", KERNEL, severity=FATAL, subject=gpu,
                         body={"xid": draw.choice(_XIDS[what]), "pci": f"0000:{device + 16:02x}:00"})  # fmt: skip
        if what == "bus":
            self.say(at + draw.uniform(1, 60), node, "gpu.lost", ROOT, severity=FATAL, subject=gpu, body={})
            self.say(at, node, "pcie.aer", KERNEL, severity=FATAL, body={"pci": f"0000:{device + 16:02x}:00"})
        elif what == "memory":
            for again in range(draw.choice((0, 3, 30))):
                self.say(at - 60 * again - 5, node, "memory.ecc", KERNEL, severity=WARN, body={"corrected": 9})
            self.say(at, node, "memory.ecc", KERNEL, severity=FATAL, body={"corrected": 0, "uncorrected": 1})
        elif what == "port":
            for _ in range(draw.choice((2, 8, 40))):
                self.say(at + draw.expovariate(1 / HOUR), node, "link.flap", KERNEL, severity=WARN,
                         subject=f"port:mlx5_{device}/1", body={"flaps": draw.randint(1, 9)})  # fmt: skip
        elif what == "board":
            self.say(at, node, "device.error", KERNEL, severity=FATAL, body={"text": "machine check"})
        if what in ("board", "memory") or (what in ("bus", "gpu") and draw.random() < 0.4):
            back = self._gone(at + draw.uniform(30, 400), node)
        self._strike(at, node)
        return back

    def _gone(self, at: float, node: int) -> float:
        """Have Slurm lose a node, which boots by itself; return when it is back."""
        back = at + self.draw.uniform(0.2, 1.5) * HOUR
        self.state(at, node, "down", "Not responding")
        self.say(back - 200, node, "node.start", ROOT, body={"booted": back - 300})
        self.state(back, node, "resume")
        return back

    def _strike(self, at: float, node: int) -> None:
        """End the job that runs on a node, if one does: large jobs are hit more often."""
        draw = self.draw
        if draw.random() > self.fleet.busy:
            return
        self.jobs += 1
        self.truth.struck.add(self.jobs)
        size = min(2 ** int(draw.triangular(0, math.log2(self.fleet.largest) + 1)), self.fleet.nodes)
        first = max(0, min(node - draw.randrange(size), self.fleet.nodes - size))
        uid = 3000 + draw.randrange(self.fleet.users)
        for other in {node, *range(first, first + min(size, 40))}:
            mine = other == node or draw.random() < 0.1
            body = {"task": 0, "tasks": 8, "status": None, "signal": 7 if mine else 9, "why": "signal"}
            self.say(at + draw.uniform(1, 40), other, "step.outcome", USER, job=self.jobs, step="0", run=0, uid=uid,
                     body=body)  # fmt: skip

    # Causes that are no node's own.

    def _times(self, every_days: float) -> Iterator[float]:
        time = START
        while (time := time + self.draw.expovariate(1 / (every_days * DAY))) < self.end:
            yield time

    def _shared(self, at: float, node: int, what: str) -> None:
        if START <= at < self.end:
            self.truth.shared.append((at, self.names[node], what))

    def _switches(self) -> None:
        """A line card or its cables: the ports of 2 to 32 nodes go down, again and again until it is changed."""
        for begin in self._times(25):
            many = self.draw.choice((2, 3, 4, 8, 16, 32))
            first = self.draw.randrange(max(1, self.fleet.nodes - many))
            until, at = begin + self.draw.lognormvariate(math.log(20), 1) * HOUR, begin
            while at < until:
                for node in range(first, min(first + many, self.fleet.nodes)):
                    if self.draw.random() < 0.8:
                        self._shared(at, node, "switch")
                        self.say(at + self.draw.uniform(0, 30), node, "link.flap", KERNEL, severity=WARN,
                                 subject="port:mlx5_0/1", body={"state": "down", "flaps": 1})  # fmt: skip
                at += self.draw.weibullvariate(4, 0.8) * HOUR

    def _racks(self) -> None:
        """Cooling: the nodes of a rack get hot one after the other, within two hours, and some do so again."""
        for begin in self._times(60):
            first = self.draw.randrange(0, self.fleet.nodes, _RACK)
            for node in range(first, min(first + _RACK, self.fleet.nodes)):
                for again in range(self.draw.choice((0, 0, 1, 1, 2))):
                    at = begin + (self.draw.uniform(0, 2) + 20 * again) * HOUR
                    self._shared(at, node, "cooling")
                    self.say(at, node, "device.error", KERNEL, severity=FATAL, body={"text": "temperature"})
                    self._gone(at + 60, node)

    def _drivers(self) -> None:
        """A driver is rolled out, and 1.5 % of the nodes fail with it, once or more, until it is rolled back."""
        for begin in self._times(200):
            until = begin + self.draw.uniform(2, 6) * DAY
            for node in self.draw.sample(range(self.fleet.nodes), round(self.fleet.nodes * 0.015)):
                at = begin
                while (at := at + self.draw.expovariate(1 / (60 * HOUR))) < until:
                    self._shared(at, node, "driver")
                    self.say(at, node, "gpu.xid", KERNEL, severity=FATAL, subject=f"gpu:GPU-{node:04x}-0",
                             body={"xid": 119, "pci": "0000:10:00"})  # fmt: skip
                    self._strike(at, node)

    def _programs(self) -> None:
        """A user's program takes the nodes down on which it runs; he tries it a few times, often on the same nodes."""
        for begin in self._times(45):
            uid, many = 3000 + self.draw.randrange(self.fleet.users), self.draw.choice((1, 1, 2, 4, 8, 16))
            first = self.draw.randrange(max(1, self.fleet.nodes - many))
            at = begin
            for _ in range(self.draw.randint(1, 6)):
                self.jobs += 1
                self.truth.broken[self.jobs] = uid
                if self.draw.random() < 0.4:
                    first = self.draw.randrange(max(1, self.fleet.nodes - many))
                for node in range(first, min(first + many, self.fleet.nodes)):
                    self._shared(at, node, "program")
                    down = at + self.draw.uniform(0, 900)
                    self.say(down - 200, node, "fs.blocked", KERNEL, severity=WARN, subject="fs:/scratch",
                             body={"processes": 40, "seconds": 130})  # fmt: skip
                    self._gone(down, node)
                at += self.draw.uniform(1, 30) * HOUR

    def _broken(self) -> None:
        """Programs that are broken, and take nothing with them: sweeps of one-node jobs, and single large ones."""
        draw, fleet = self.draw, self.fleet
        for begin in self._times(1.2):
            uid, sweep = 3000 + draw.randrange(fleet.users), draw.random() < 0.5
            for number in range(draw.randint(2, 20) if sweep else 1):
                self.jobs += 1
                self.truth.broken[self.jobs] = uid
                size = 1 if sweep else min(2 ** draw.randrange(10), fleet.largest, fleet.nodes)
                first = draw.randrange(fleet.nodes - size + 1)
                signal = draw.choice((6, 11))
                for node in range(first, first + size):
                    at = begin + 60 * number + draw.uniform(0, 5)
                    body = {"task": 0, "tasks": 8, "status": None, "signal": signal, "why": "signal"}
                    self.say(at, node, "step.outcome", USER, job=self.jobs, step="0", run=0, uid=uid, body=body)
                    if draw.random() < 0.2:
                        self.say(at, node, "gpu.xid", KERNEL, severity=INFO, job=self.jobs, uid=uid,
                                 subject=f"gpu:GPU-{node:04x}-1", body={"xid": 31})  # fmt: skip

    # What goes on, and how it is told.

    def _life(self) -> None:
        for node in range(self.fleet.nodes):
            at = START + self.draw.uniform(0, self.fleet.heartbeat_h) * HOUR
            while at < self.end:
                self.say(at, node, "node.heartbeat", ROOT, body={"uptime_s": at - START})
                at += self.fleet.heartbeat_h * HOUR * self.draw.uniform(0.9, 1.1)
        for at in self._times(self.fleet.maintenance_days * 2):  # one rack after the other
            for node in range(self.fleet.nodes):
                begin = at + node // _RACK * 2 * HOUR
                self.state(begin, node, "drain", "firmware", "op")
                self.say(begin + HOUR, node, "node.start", ROOT, body={"booted": begin + HOUR})
                self.state(begin + 1.5 * HOUR, node, "resume", by="op")
        for at in self._times(1 / self.fleet.drains_per_day):
            node = self.draw.randrange(self.fleet.nodes)
            self.state(at, node, "drain", "reserved", "bob")
            self.state(at + 3 * HOUR, node, "resume", by="bob")

    def _delivered(self) -> list[tuple[float, Event]]:
        """Return all of it as batches bring it: late where the service was away, twice where an answer was lost."""
        draw = self.draw
        away = [(at, at + draw.uniform(1, 12) * HOUR) for at in self._times(30)]
        full = {draw.choice(self.names): (at, at + draw.uniform(1, 30) * HOUR) for at in self._times(2)}
        for name, (_, until) in full.items():
            self.say(until, self.names.index(name), "spool.lost", ROOT, body={"records": 9, "why": "the disk is full"})
        drifts = {name: (draw.gauss(0, 0.2), draw.choice((0, 0, 0, 3e-5))) for name in self.names}
        begins = {name: draw.uniform(0, _BATCH) for name in self.names}
        numbers: dict[tuple[str, str], int] = {}
        told: list[tuple[float, int, Event]] = []
        for time, _, fields in sorted(self.said, key=lambda one: one[:2]):
            name, kind = fields["node"], fields["kind"]
            own = kind.startswith(("slurm.", "site."))
            epoch = CENTRAL if own else f"{fields['uid']:016x}" if fields["source"] == USER else "f" + "3" * 15
            seq = numbers[name, epoch] = numbers.get((name, epoch), 0) + 1
            if not own and name in full and full[name][0] <= time < full[name][1]:
                continue
            error, rate = drifts[name]
            offset = 0.0 if own else round(error + rate * ((time - START) % (7 * DAY)), 3)  # set right once a week
            event = Event("fleet", epoch=epoch, seq=seq, time=round(time + offset, 3), offset=offset, **fields)
            batch = time if own else (time - begins[name]) // _BATCH * _BATCH + _BATCH + begins[name]
            batch = next((end + draw.uniform(0, 300) for begin, end in away if begin <= batch < end), batch)
            told += [(batch + draw.uniform(0, 2), len(told), event)]
            if draw.random() < self.fleet.twice:
                told += [(batch + draw.uniform(5, 900), len(told), event)]
        return [(received, event) for received, _, event in sorted(told, key=lambda one: one[:2])]
