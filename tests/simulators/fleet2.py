"""Another fleet, built differently, for acceptance: no rule and no detector is tuned on what it makes.

The rates are those of `fleet` (2e-5 failures an hour, 1.2 % lemons at 20 times that), the rest is not: time goes by in
hours, failures come in clusters (each draws a train of repeats), a lemon has days on which it is bad and days on which
it is well, racks fail together, users submit the same broken program again and again, arrays of one-node jobs and
requeued jobs run, and records are lost in whole stretches, of which a `spool.lost` tells.
"""

from __future__ import annotations

import numpy as np
from piolet.events.envelope import FATAL, KERNEL, ROOT, SITE, USER, WARN, Event

from tests.simulators.fleet import CENTRAL, START, Fleet, Truth

_HOUR = 3600.0
_RACK = 40


def simulate(seed: int, fleet: Fleet = Fleet()) -> tuple[list[tuple[float, Event]], Truth]:  # noqa: B008
    """Return (when the central service took it, event) in that order, and what was true, as `fleet.simulate` does."""
    return _Hours(seed, fleet).run()


class _Hours:
    def __init__(self, seed: int, fleet: Fleet) -> None:
        self.draw = np.random.default_rng(seed)
        self.fleet = fleet
        self.lemons = self.draw.choice(fleet.nodes, round(fleet.nodes * fleet.lemons), replace=False)
        self.bad = np.zeros(fleet.nodes, bool)  # lemons that have a bad day
        self.truth = Truth({self.name(int(node)) for node in self.lemons})
        self.told: list[tuple[float, Event]] = []
        self.seq: dict[tuple[str, str], int] = {}
        self.gap = np.zeros(fleet.nodes)  # until which hour what a node says is lost
        self.drift = self.draw.normal(0, 2, fleet.nodes) + (self.draw.random(fleet.nodes) < 0.01) * 2400
        self.job = 0
        self.running: list[tuple[int, int, int, np.ndarray, str]] = []  # until, number, uid, nodes, broken how
        self.busy = np.zeros(fleet.nodes, bool)

    @staticmethod
    def name(node: int) -> str:
        """Return a node's name."""
        return f"rack{node // _RACK:02d}-{node % _RACK:02d}"

    def say(self, time: float, node: int, kind: str, source: str, **rest: object) -> None:
        """Tell an event, late, twice or not at all."""
        name, uid = self.name(node), rest.get("uid")
        mine = kind.startswith(("slurm.", "site."))
        epoch = CENTRAL if mine else f"{node:016x}" if uid is None or source != USER else f"{uid:016x}"
        seq = self.seq[name, epoch] = self.seq.get((name, epoch), 0) + 1
        if not mine and self.gap[node] > (time - START) / _HOUR:
            return
        offset = 0.0 if mine else float(self.drift[node])
        measured = None if self.draw.random() < 0.02 and abs(offset) < 10 else offset
        event = Event("fleet", name, epoch, seq, round(time + offset, 3), kind, source, offset=measured, **rest)  # type: ignore[arg-type]
        wait = float(self.draw.exponential(2.0 if self.draw.random() < 0.95 else 4 * _HOUR))
        self.told += [(time + wait, event)] * (2 if self.draw.random() < 0.03 else 1)

    def run(self) -> tuple[list[tuple[float, Event]], Truth]:
        """Return everything."""
        fleet, draw = self.fleet, self.draw
        for hour in range(int(fleet.days * 24)):
            at = START + hour * _HOUR
            if hour % 24 == 0:
                self.bad[self.lemons] = draw.random(len(self.lemons)) < 0.5
            self._schedule(hour, at)
            # Trains of 1, 2 or 3 failures, 1.5 in the mean; a lemon has twice its rate on every other day.
            rate = np.full(fleet.nodes, fleet.rate / 1.5)
            rate[self.lemons] = 0.0
            rate[self.bad] = 2 * fleet.factor * fleet.rate / 1.5
            for node in np.flatnonzero(draw.random(fleet.nodes) < rate):
                for repeat in range(int(draw.choice((1, 2, 3), p=(0.6, 0.3, 0.1)))):
                    self._fail(
                        at + repeat * float(draw.uniform(1, 30)) * _HOUR + float(draw.uniform(0, _HOUR)), int(node)
                    )
            self._other(hour, at)
        last = START + fleet.days * 86400
        told = sorted(
            (one for one in self.told if one[1].time < last), key=lambda one: (one[0], one[1].node, one[1].seq)
        )
        return told, self.truth

    def _schedule(self, hour: int, at: float) -> None:
        draw, fleet = self.draw, self.fleet
        for ended in [one for one in self.running if one[0] <= hour]:
            self.running.remove(ended)
            self.busy[ended[3]] = False
            _, number, uid, nodes, broken = ended
            if broken:
                self._break(at, number, uid, nodes, broken)
        while self.busy.mean() < fleet.busy:
            free = np.flatnonzero(~self.busy)
            size = min(int(np.exp(draw.uniform(0, np.log(fleet.largest + 1)))), len(free))
            begin = int(draw.integers(0, len(free) - size + 1))
            nodes = free[begin : begin + size]  # next to each other, as Slurm's topology likes it
            self.job += 1
            uid = 2000 + int(draw.integers(0, fleet.users))
            broken = str(draw.choice(("all", "one", "oom"))) if draw.random() < fleet.broken else ""
            hours = 1 if broken else 1 + int(draw.exponential(9))
            self.busy[nodes] = True
            self.running.append((hour + hours, self.job, uid, nodes, broken))

    def _break(self, at: float, number: int, uid: int, nodes: np.ndarray, how: str) -> None:
        self.truth.broken[number] = uid
        for again in range(int(self.draw.integers(1, 5))):  # the user tries the same thing again, on the same nodes
            for index, node in enumerate(nodes):
                mine = how != "one" or index == 0  # always the node of rank 0
                body = {"task": index, "status": None, "signal": (9 if how == "oom" else 11) if mine else 9, "tasks": 4,
                        "why": ("out_of_memory" if how == "oom" else "signal") if mine else "cancelled"}  # fmt: skip
                self.say(at + again * 300 + float(self.draw.uniform(0, 9)), int(node), "step.outcome", USER, uid=uid,
                         job=number, step=str(again), run=again, body=body)  # fmt: skip
                if mine and how == "oom":
                    self.say(at + again * 300, int(node), "kernel.oom", KERNEL, severity=WARN, job=number, uid=uid,
                             body={"scope": "cgroup"})  # fmt: skip
                elif mine and self.draw.random() < 0.3:
                    self.say(at + again * 300, int(node), "gpu.xid", KERNEL, job=number, uid=uid, severity="info",
                             subject=f"gpu:GPU-{node}-0", body={"xid": 31, "text": "MMU fault"})  # fmt: skip

    def _fail(self, time: float, node: int) -> None:
        draw = self.draw
        what = str(
            draw.choice(("xid", "lost", "ecc", "aer", "link", "dead", "quiet"), p=(0.3, 0.1, 0.1, 0.1, 0.1, 0.1, 0.2))
        )
        self.truth.failures.append((time, self.name(node), what))
        gpu = f"gpu:GPU-{node}-{int(draw.integers(0, 4))}"
        if what == "xid":
            self.say(
                time,
                node,
                "gpu.xid",
                KERNEL,
                severity=FATAL,
                subject=gpu,
                body={"xid": int(draw.choice((48, 79, 119)))},
            )
        elif what == "lost":
            self.say(time, node, "gpu.lost", KERNEL, severity=FATAL, subject=gpu)
        elif what == "ecc":
            self.say(time, node, "memory.ecc", KERNEL, severity=FATAL, body={"uncorrected": 1})
        elif what == "aer":
            self.say(
                time, node, "pcie.aer", KERNEL, severity=FATAL, body={"pci": "0000:01:00", "text": "Uncorrectable"}
            )
        elif what == "link":
            for flap in range(5):
                self.say(
                    time + 300 * flap, node, "link.flap", KERNEL, severity=WARN, subject="port:eth0", body={"flaps": 1}
                )
        elif what == "dead":
            self.gap[node] = max(self.gap[node], (time - START) / _HOUR + 5)
            self.say(time + 400, node, "slurm.node_state", SITE, body={"state": "down", "reason": "Not responding"})
            self.say(time + 5 * _HOUR, node, "node.start", ROOT, body={"booted": time + 5 * _HOUR})
        for job in [one for one in self.running if node in one[3]]:
            self.truth.struck.add(job[1])
            for other in job[3]:
                signal = 6 if other == node or draw.random() < 0.5 else 9
                self.say(time + float(draw.uniform(0, 90)), int(other), "step.outcome", USER, uid=job[2], job=job[1],
                         step="0", run=0, body={"status": None, "signal": signal, "tasks": 4,
                                                "why": "signal" if signal == 6 else "cancelled"})  # fmt: skip
        if what != "quiet" and draw.random() < 0.8:
            self.say(
                time + 2 * _HOUR, node, "slurm.node_state", SITE, body={"state": "drain", "reason": what, "by": "root"}
            )
            self.say(time + 20 * _HOUR, node, "site.repair", SITE, body={"text": "", "by": "hands"})
            self.say(time + 21 * _HOUR, node, "slurm.node_state", SITE, body={"state": "resume", "by": "root"})

    def _other(self, hour: int, at: float) -> None:
        draw, fleet = self.draw, self.fleet
        for node in np.flatnonzero(draw.random(fleet.nodes) < 1 / fleet.heartbeat_h):
            self.say(
                at + float(draw.uniform(0, _HOUR)), int(node), "node.heartbeat", ROOT, body={"uptime_s": hour * _HOUR}
            )
        if draw.random() < 1 / (24 * 12):  # a rack's switch, or its power
            rack = int(draw.integers(0, fleet.nodes // _RACK)) * _RACK
            power = draw.random() < 0.3
            for node in range(rack, min(rack + _RACK, fleet.nodes)):
                if power:
                    self.say(
                        at + 60, node, "slurm.node_state", SITE, body={"state": "down", "reason": "Not responding"}
                    )
                    self.say(at + _HOUR, node, "node.start", ROOT, body={"booted": at + _HOUR})
                for flap in range(3):
                    self.say(
                        at + 200 * flap,
                        node,
                        "link.flap",
                        KERNEL,
                        severity=WARN,
                        subject="port:eth0",
                        body={"flaps": 1},
                    )
        if draw.random() < 0.05:  # a spool is lost
            node = int(draw.integers(0, fleet.nodes))
            self.say(at, node, "spool.lost", ROOT, body={"records": 10, "epoch": f"{node:016x}", "why": "disk full"})
            self.gap[node] = hour + int(draw.integers(1, 24))
        if draw.random() < 0.2:  # powered down to save energy, or tested
            node = int(draw.integers(0, fleet.nodes))
            state = str(draw.choice(("powered_down", "drain")))
            self.say(at, node, "slurm.node_state", SITE, body={"state": state, "reason": "", "by": "slurm"})
            self.say(at + 2 * _HOUR, node, "slurm.node_state", SITE, body={"state": "resume", "by": "slurm"})
