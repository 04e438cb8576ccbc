"""Nodes that are lines of text only: they answer the real coordinator, and its costs are counted.

No Slurm, no network and no process of a node: what is measured is what srun's side does. The clock stands still, so
that no deadline comes.
"""

from __future__ import annotations

import contextlib
import cProfile
import pstats
import time
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from piolet.api import PASS, Verdict
from piolet.vet import screen, step
from piolet.vet.coordinator import Coordinator
from piolet.vet.runner import meeting, records, schedule
from piolet.vet.runner.meeting import Row
from piolet.vet.runner.plan import Plan
from piolet.vet.verdicts import Decision

from tests.support.protocols import plan_of

ALONE = ("env", "gpu", "memory_available", "limits", "mounts", "leftovers")
PROTOCOL = "name: scale\nevals:\n- {{type: network_pair, rounds: {rounds}}}\n" + "".join(
    f"- type: {name}\n" for name in ALONE
)
FAST, SLOW = 10.0, 2.0
_TOGETHER = 64


@dataclass
class Costs:
    """What a vetting of `nodes` nodes cost the coordinator.

    cpu_s       all that it does, in CPU seconds
    judging_s   of it, the part that is not the reading of lines: rounds, judging, decision and screen
    calls       of functions, Python's and C's: they stand for CPU seconds, which caches and other processes disturb
    bytes       written to srun once and read from the nodes
    longest     line that was sent, in bytes
    memory      most that it needed beyond what it had before, in bytes
    """

    nodes: int
    rounds: int = 0
    cpu_s: float = 0.0
    judging_s: float = 0.0
    calls: int = 0
    bytes: int = 0
    longest: int = 0
    memory: int = 0


class Swarm:
    """Vets `count` nodes, of which those numbered `slow` have slow links. `counting`: calls instead of seconds."""

    def __init__(self, count: int, slow: Set[int] = frozenset(), rounds: int = 0, counting: bool = False) -> None:
        self.names = [f"nid{number:06}" for number in range(count)]
        self.slow = {self.names[number] for number in slow}
        self.plan: Plan = plan_of(PROTOCOL.format(rounds=rounds))
        self.costs = Costs(count)
        self._profile = cProfile.Profile() if counting else None
        self._rows = [
            Row(name, f"10.{at >> 16}.{at >> 8 & 255}.{at & 255}", 32768 + at * 7919 % 28000)
            for at, name in enumerate(self.names)
        ]
        self._leader = Coordinator(self.plan, self.names, lambda: 0.0)
        # Some nodes read the orders as all nodes would, and have to come to the same.
        watched = sorted({0, count // 2, count - 1, *list(slow)[:1]})
        self._real = {self.names[at]: meeting.Orders(self.names[at]) for at in watched}

    def vet(self) -> tuple[Decision, str]:
        """Vet, and return the decision and the screen."""
        with step.uncollected():  # as srun's side does
            return self._vet()

    def _vet(self) -> tuple[Decision, str]:
        before = _most_memory()
        for at in range(0, len(self._rows), _TOGETHER):  # srun tells of some nodes at a time
            self._feed([(row.name, line) for row in self._rows[at : at + _TOGETHER] for line in self._alone(row)])
        while True:
            with self._counted(judging=True):
                self._leader.advance()
                orders = self._leader.orders()
            self.costs.bytes += sum(map(len, orders))
            self.costs.longest = max([self.costs.longest, *map(len, orders)])
            answers = (answer for order in orders for answer in self._obey(order))
            told = 0
            while some := list(islice(answers, _TOGETHER)):
                self._feed(some)
                told += len(some)
            if self._leader.done:
                break
            assert told, "the coordinator waits for nobody"
        with self._counted(judging=True):
            decision = self._leader.found.decision(self.plan, self.names)
            text = screen.render(self.plan, decision, 1.0)
        self.costs.memory = _most_memory() - before
        if self._profile is not None:
            self.costs.calls = pstats.Stats(self._profile).total_calls  # type: ignore[attr-defined]
        return decision, text

    @contextlib.contextmanager
    def _counted(self, judging: bool = False) -> Iterator[None]:
        """Count what is done in the block."""
        begun = time.process_time()
        if self._profile is not None:
            self._profile.enable()
        yield
        if self._profile is not None:
            self._profile.disable()
        seconds = time.process_time() - begun
        self.costs.cpu_s += seconds
        self.costs.judging_s += seconds if judging else 0.0

    def _feed(self, lines: Sequence[tuple[str, bytes]]) -> None:
        with self._counted():
            for node, line in lines:
                self._leader.feed(node, line)
        self.costs.bytes += sum(len(line) for _, line in lines)

    @staticmethod
    def _alone(row: Row) -> list[bytes]:
        """Return what a node says by itself."""
        good = Verdict(PASS, "", "problems", 0.0)
        return [
            records.encode("hello", {"node": row.name, "where": "host", "evals": len(ALONE)}),
            records.encode("address", {"node": row.name, "host": row.host, "port": row.port}),
            *(records.encode_record(records.record(row.name, name, name, good, 0.001)) for name in ALONE),
            records.encode("end", {"node": row.name, "where": "host", "evals": len(ALONE)}),
        ]

    def _obey(self, line: bytes) -> list[tuple[str, bytes]]:
        """Return the answers of all nodes to an order."""
        kind, order = records.decode(line) or ("", {})
        seen = {name: one.take(kind, order, True) for name, one in self._real.items()}
        if kind != "meet":
            return []
        if "pairs" in order:
            pairs = [(self._rows[a], self._rows[b]) for a, b in order["pairs"]]
        else:
            places = meeting.scheduled(self._rows, order["seed"], True)
            pairs = [(self._rows[a], self._rows[b]) for a, b in schedule.pairs(places, order["turn"])]
        self.costs.rounds = order["round"]
        found = {row.name: pair for pair in pairs for row in pair}
        for name, own in seen.items():
            expected = tuple(row.name for row in found.get(name, ()))
            assert tuple(own.members if own else ()) == expected, "a node works out another round than the coordinator"
        return [(first.name, self._met(order["round"], first.name, second.name)) for first, second in pairs]

    def _met(self, number: int, first: str, second: str) -> bytes:
        value = SLOW if {first, second} & self.slow else FAST + (hash((first, second)) % 100) / 100
        clocks = {"latency_s": 2.1e-6, "latency_max_s": 9.5e-6, "clock_offset_s": 1e-6}
        details = {**clocks, "send": value, "receive": value}
        return records.encode("met", {
            "round": number, "node": first, "eval": "network_pair", "kind": "network_pair", "outcome": PASS,
            "reason": "", "measure": "bandwidth", "value": value, "limit": None, "unit": "GB/s", "seconds": 0.05,
            "cached": False, "peer": second, "details": details,
        })  # fmt: skip


def _most_memory() -> int:
    """Return the most memory that this program had, in bytes."""
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM:"))) * 1024
