"""A protocol with everything decided, as it travels to the nodes: canonical JSON.

Nodes never read YAML and never look at the user's protocol file. This module runs under Python 3.8, since it
is part of the runner that goes into images.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from piolet.base.errors import VetError

VERSION = 2
LIMIT_BYTES = 96 * 1024
"""A plan travels in one word of the environment, which may be 128 KiB long."""
HOST, ENVIRONMENT = "host", "environment"
EXCLUDE, ABORT, WARN = "exclude", "abort", "warn"


# How the bounds below grow was chosen, not measured: no machine of thousands of nodes was at hand. They are what is
# waited for at most, when a node says nothing; where all speak, nobody waits for them.


def start_s(nodes: int) -> float:
    """Return what nodes may need before their budget begins: 15 s, and 10 ms more for each node."""
    return 15.0 + nodes / 100


def apart_s(nodes: int) -> float:
    """Return how far apart nodes may begin, and how long a table may take to reach all: 3 s, and 5 ms for each node."""
    return 3.0 + nodes / 200


def meeting_slack_s(nodes: int) -> float:
    """Return what an order and its answers may take on their way, beside the eval: 2 s, and 2 ms for each node."""
    return 2.0 + nodes / 500


OWN_SCOPE = "nodes meet for Piolet's own evals and the site's alone"


@dataclass(frozen=True)
class Task:
    """One eval of a protocol.

    name             as the protocol calls it; unique there
    kind             the short name of the catalogue, or the dotted class
    target           'module:Class', or 'path.py:Class' for a site's file
    parameters       ready for the class; plain JSON values
    requirements     what pip is told, one tuple for each requirement, its options after it
    search           directories in which the user's own classes are looked for
    cache_s          how long a 'pass' is good for; 0: never used again
    """

    name: str
    kind: str
    target: str
    scope: str = "node"
    loads: tuple[str, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    requirements: tuple[tuple[str, ...], ...] = ()
    search: tuple[str, ...] = ()
    where: str = HOST
    timeout_s: float = 5.0
    on_fail: str = EXCLUDE
    on_inconclusive: str = "fail"
    baseline: str = "absolute"
    unit: str = ""
    better: str = ""
    effect: float = 0.1
    cache_s: float = 0.0

    def digest(self) -> str:
        """Return what changes when the task would be done differently."""
        return hashlib.sha256(_canonical(asdict(self))).hexdigest()[:32]


@dataclass(frozen=True)
class Plan:
    """A whole protocol. `digest` is of the protocol; `min_nodes` 0: as many as are asked for."""

    name: str
    tasks: tuple[Task, ...]
    budget_s: float = 60.0
    min_nodes: int = 0
    spares: int = 0
    index_url: str = ""
    requirements_s: float = 120.0

    def meetings_s(self, nodes: int) -> float:
        """How long meetings may take: a budget of their own, what has begun then, and suspects once more.

        Pairs that tell why a group is bad come after it.
        """
        rounds = {"pair": 3, "group": 4}
        slack = meeting_slack_s(nodes)
        bounds = [rounds[task.scope] * (task.timeout_s + slack) for task in self.tasks if task.scope in rounds]
        return self.budget_s + apart_s(nodes) + sum(bounds) if bounds else 0.0

    def to_json(self) -> bytes:
        """Return the canonical form."""
        return _canonical({"version": VERSION, **asdict(self)})

    def digest(self) -> str:
        """Return `sha256:` and the digest of the canonical form."""
        return "sha256:" + hashlib.sha256(self.to_json()).hexdigest()


def text(plan: Plan, most: int = LIMIT_BYTES) -> str:
    """Return the plan as it travels. Raises VetError: it is too long."""
    data = plan.to_json()
    if len(data) > most:
        raise VetError(
            f"the protocol is {len(data)} bytes long when it is worked out, more than {most}", "split it in two"
        )
    return data.decode("utf-8")


def from_json(data: bytes) -> Plan:
    """Return the plan that `to_json` wrote. Raises VetError for anything else."""
    if len(data) > LIMIT_BYTES:
        raise VetError(f"the plan is {len(data)} bytes long, more than the limit of {LIMIT_BYTES}")
    try:
        value = json.loads(data.decode("utf-8"))
        if value.pop("version") != VERSION:
            raise VetError(
                f"the plan is not of version {VERSION}: srun's Piolet and this node's are of different releases",
                "install the same release everywhere, and submit the job again",
            )
        tasks = tuple(_task(item) for item in value.pop("tasks"))
        return Plan(tasks=tasks, **value)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise VetError("the plan is malformed") from None


def _task(item: Mapping[str, Any]) -> Task:
    plain: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in item.items()}
    plain["requirements"] = tuple(tuple(one) for one in item["requirements"])
    task = Task(**plain)
    if not isinstance(task.timeout_s, (int, float)) or not task.timeout_s > 0:
        raise ValueError("a task without a deadline")
    return task


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
