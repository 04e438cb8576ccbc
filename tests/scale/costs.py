"""What vettings of several sizes cost, each measured in a process of its own."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from pathlib import Path

from tests.scale import FULL
from tests.scale.swarm import Costs

ROOT = Path(__file__).resolve().parents[2]
SIZES = (64, 640, 2688, 10_000) if FULL else (64, 640, 2688)
_LEAST: dict[int, float] = {}


@dataclass(frozen=True)
class Measured:
    """One vetting: its costs, who was left out, who was slow, and how many lines the screen has."""

    costs: Costs
    bad: Sequence[str]
    slow: Sequence[str]
    lines: int


def least_cpu(count: int) -> float:
    """Return the least CPU seconds of several vettings of `count` nodes so far, one more with each call."""
    found = _run(count, "seconds")
    _LEAST[count] = min(_LEAST.get(count, found.costs.cpu_s), found.costs.cpu_s)
    return _LEAST[count]


@functools.cache
def measured(count: int) -> Measured:
    """Vet `count` nodes, of which one in a hundred is slow, and return what came of it."""
    return _run(count, "calls")


def _run(count: int, what: str) -> Measured:
    command = [sys.executable, "-m", "tests.scale", str(count), what]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    return Measured(Costs(**found["costs"]), found["bad"], found["slow"], found["lines"])


def exponent(small: float, large: float, sizes: tuple[int, int] = (SIZES[0], SIZES[-1])) -> float:
    """Return with which power of the number of nodes a cost grows: 1 is linear."""
    return log(large / small) / log(sizes[1] / sizes[0])
