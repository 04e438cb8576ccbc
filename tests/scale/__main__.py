"""Prints what a vetting with pairs costs srun's side, by number of nodes: `python -m tests.scale`.

`python -m tests.scale NODES [calls]` measures one size in this process and prints JSON. One node in a hundred is slow.
"""

from __future__ import annotations

import dataclasses
import json
import sys

from tests.scale import costs
from tests.scale.swarm import Swarm


def main(words: list[str]) -> int:
    """Measure one size, or print a table of all."""
    if words:
        print(json.dumps(one_size(int(words[0]), "calls" in words)))
        return 0
    print("| nodes | slow | rounds | CPU | of it judging | calls | sent and read | longest line | memory |")
    print("|---|---|---|---|---|---|---|---|---|")
    for count in costs.SIZES:
        one = costs.measured(count)
        own = one.costs
        spent = f"{own.rounds} | {own.cpu_s:.3f} s | {own.judging_s:.3f} s | {own.calls:,}"
        room = f"{own.bytes / 1e6:.2f} MB | {own.longest:,} B | {own.memory / 1e6:.1f} MB"
        print(f"| {count:,} | {len(one.slow)} | {spent} | {room} |")
    return 0


def one_size(count: int, calls: bool) -> dict[str, object]:
    """Return what a vetting of `count` nodes cost, and what it came to; `calls`: in another one, they are counted."""
    slow = set(range(3, count, 100))
    swarm = Swarm(count, slow)
    decision, text = swarm.vet()
    if calls:
        again = Swarm(count, slow, counting=True)
        again.vet()
        swarm.costs.calls = again.costs.calls
    found = {"bad": decision.bad, "slow": sorted(swarm.slow), "lines": len(text.splitlines())}
    return {"costs": dataclasses.asdict(swarm.costs), **found}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
