"""Prints how many records a second the engine judges, and its memory: `python -m tests.scale.rules [RECORDS]`.

10,000 node names, all rules of the catalogue; the mix of kinds is a guess at a fleet in trouble: half heartbeats, a
third what users' steps and vettings say, the rest hardware and Slurm.
"""

from __future__ import annotations

import gc
import random
import resource
import sys
import time

from piolet.central.rules.engine import Engine
from piolet.events.envelope import FATAL, KERNEL, ROOT, SITE, USER, WARN, Event

from tests.scale.fleets import catalogue

NODES = 10_000
_START = 1_800_000_000.0


def records(many: int, rate: float = 2000.0, seed: int = 1) -> list[Event]:
    """Return records that come `rate` a second."""
    draw = random.Random(seed)
    names = [f"n{i:05d}" for i in range(NODES)]
    made = []
    for number in range(many):
        node, at, dice = draw.choice(names), _START + number / rate, draw.random()
        rest: dict[str, object] = {}
        if dice < 0.5:
            kind, source = "node.heartbeat", ROOT
        elif dice < 0.75:
            kind, source = "step.outcome", USER
            why = draw.choice(("exit", "signal", "cancelled"))
            rest = {"uid": draw.randrange(1000, 1400), "job": 1 + number // 50, "step": "0", "run": 0,
                    "body": {"why": why, "status": draw.choice((0, 1)), "tasks": 8}}  # fmt: skip
        elif dice < 0.83:
            kind, source = "vet.verdict", USER
            gpu = f"gpu:GPU-{draw.randrange(8)}"
            rest = {"uid": draw.randrange(1000, 1400), "job": 1 + number // 50, "subject": gpu,
                    "body": {"state": draw.choice(("pass", "pass", "pass", "fail")), "eval": "gpu_health"}}  # fmt: skip
        elif dice < 0.9:
            kind, source = "gpu.xid", KERNEL
            rest = {"subject": f"gpu:GPU-{draw.randrange(8)}", "severity": draw.choice((FATAL, WARN)),
                    "body": {"xid": draw.choice((13, 31, 31, 43, 48, 79)), "gpc": 1, "tpc": 2}}  # fmt: skip
        elif dice < 0.95:
            kind, source = "link.flap", KERNEL
            rest = {"subject": f"port:mlx5_{draw.randrange(8)}/1", "severity": WARN, "body": {"flaps": 1}}
        else:
            kind, source = "slurm.node_state", SITE
            rest = {"body": {"state": draw.choice(("drain", "resume", "down")), "reason": "Not responding"}}
        made.append(Event("c", node, "e" * 16, number + 1, at, kind, source, **rest))  # type: ignore[arg-type]
    return made


def measured(many: int) -> tuple[float, float, int]:
    """Return records a second of CPU time, MB that the engine grew by, and conclusions."""
    rules, made = catalogue("30min"), records(many)
    gc.collect()
    before = _resident()
    engine = Engine(rules)
    begin = time.process_time()
    found = sum(len(engine.take(event, event.time)) for event in made)
    spent = time.process_time() - begin
    gc.collect()
    return many / spent, _resident() - before, found


def _resident() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 1e6


def main(words: list[str]) -> int:
    """Print a table, or a line of one size."""
    print("| records | rules | records a second | memory | conclusions |")
    print("|---|---|---|---|---|")
    for many in [int(words[0])] if words else [100_000, 200_000, 400_000]:
        rate, megabytes, found = measured(many)
        print(f"| {many:,} | {len(catalogue())} | {rate:,.0f} | {megabytes:.0f} MB | {found:,} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
