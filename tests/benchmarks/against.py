"""Whether a container starts as fast as in another checkout: python -m tests.benchmarks.against CHECKOUT [--rounds 80]

CHECKOUT is a clone at the commit to compare with, in which `make plugins` was run. Both start a private cluster of one
node, and whole warm `srun`s in a container are timed pair by pair; --clusters times, since a cluster is a little faster
or slower than another of the same commit.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from tests.benchmarks.cluster import ROOT
from tests.benchmarks.paired import Pairs, measure

DIRECTORY = "build/benchmark-against"


def _tool(checkout: Path, *words: str) -> None:
    command = [str(checkout / "build/venv/bin/python"), "-m", "tools.cluster", *words, "--dir", DIRECTORY]
    subprocess.run(command, cwd=checkout, check=True, stdout=subprocess.DEVNULL)


def _step(checkout: Path) -> None:
    command = [str(checkout / DIRECTORY / "as"), "alice", "srun", "-N1", "--environment=demo", "true"]
    subprocess.run(command, cwd="/", check=True, stdout=subprocess.DEVNULL)


def compare(other: Path, rounds: int, clusters: int) -> Pairs:
    """Time steps of `other`, the baseline, and of this checkout, with fresh clusters of both `clusters` times."""
    total = Pairs([], [])
    for number in range(clusters):
        both = (other, ROOT) if number % 2 else (ROOT, other)
        try:
            for checkout in both:
                _tool(checkout, "down")
                _tool(checkout, "up", "--nodes", "1")
            pairs = measure(lambda: _step(other), lambda: _step(ROOT), rounds)
        finally:
            for checkout in both:
                _tool(checkout, "down")
        print(f"clusters {number + 1}: {describe(pairs)}", flush=True)
        total = Pairs(total.baseline + pairs.baseline, total.candidate + pairs.candidate)
    return total


def describe(pairs: Pairs) -> str:
    """Return the figures in a line."""
    low, high = pairs.interval_ms()
    return (
        f"{pairs.baseline_ms:.1f} ms there, {pairs.candidate_ms:.1f} ms here,"
        f" added {pairs.added_ms:+.2f} ms [{low:+.2f}, {high:+.2f}], {len(pairs.baseline)} pairs"
    )


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="against", description="Compare the start of a container with a checkout's.")
    parser.add_argument("checkout", type=Path, help="the other checkout, built")
    parser.add_argument("--rounds", type=int, default=80, help="pairs on each pair of clusters")
    parser.add_argument("--clusters", type=int, default=5, help="pairs of clusters")
    arguments = parser.parse_args()
    print(describe(compare(arguments.checkout.resolve(), arguments.rounds, arguments.clusters)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
