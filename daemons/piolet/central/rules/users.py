"""What a user is told of nodes: a line at the end of a srun that failed, what is known of a node, how many spares.

Words from counts; who counts, and who asks, is the caller's. Where nothing is known nothing is said, and of the doings
of fewer than three users nothing is told where the site hides them (PrivateData).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from piolet.base import hostlist
from piolet.base.texts import counted

USERS_LEAST, USERS_SUSPECT = 3, 2
"""Users of whom something may be told where it is hidden; of whom steps died on a node before it is to be avoided."""
ALIKE_LEAST = 2
"""Other nodes on which a step failed alike, from which on it is rather the program than a node."""


@dataclass(frozen=True)
class Failed:
    """What is known of failed steps on a node, in the last 7 days.

    steps, users   that died there and on no more than one node besides, the asker's step not among them
    """

    steps: int = 0
    users: int = 0


@dataclass(frozen=True)
class Node:
    """What is known of a node.

    failed     failed steps
    faults     what the kernel, root or the site said: sentence -> how often
    cases      sentences of open cases, as Conclusion has them
    heard      seconds since its last word, None: it never said any
    """

    name: str
    failed: Failed = Failed()
    faults: Mapping[str, int] = field(default_factory=dict)
    cases: Sequence[str] = ()
    heard: float | None = None


def hidden(users: int, private: bool) -> bool:
    """Return whether what this many users did may not be told."""
    return private and users < USERS_LEAST


def line(failed_on: Sequence[str], known: Mapping[str, Node], others: int = 0, *, private: bool = False) -> str | None:
    """Return the line for the end of a srun whose step failed, or None: nothing is known.

    failed_on  the nodes on which tasks of the step failed by themselves: not those that were ended since others failed
    known      what is known of them, this step's failures not counted
    others     other nodes on which the same user's steps failed alike this week
    """
    where = list(dict.fromkeys(failed_on))
    bad = [node for name in where if (node := known.get(name)) is not None and node.cases]
    if bad and (len(where) == 1 or len(bad) < len(where)):
        return f"{bad[0].cases[0]}: ask for --exclude={hostlist.compress(node.name for node in bad)}"
    if where and max(others, len(where) - 1) >= ALIKE_LEAST:
        alike = counted(others, "other node") if others >= len(where) else counted(len(where), "node")
        return f"it failed alike on {alike}: probably the program"
    worst = max((known[name] for name in where if name in known), key=lambda one: one.failed.users, default=None)
    if worst is None or worst.failed.users < USERS_SUSPECT or hidden(worst.failed.users, private):
        return None
    steps, users = counted(worst.failed.steps, "step"), counted(worst.failed.users, "user")
    return f"{worst.name} failed {steps} of {users} this week: ask for --exclude={worst.name}"


def about(node: Node, *, private: bool = False) -> list[str]:
    """Return the lines of `piolet node NAME`."""
    lines = [node.name]
    if node.heard is None:
        lines.append("  it has never said anything to the central service")
    elif node.heard > 1800:
        lines.append(f"  nothing was heard of it for {_long(node.heard)}")
    lines += [f"  open: {sentence}" for sentence in node.cases]
    lines += [
        f"  {sentence}" + (f" ({counted(many, 'time')})" if many > 1 else "") for sentence, many in node.faults.items()
    ]
    if node.failed.steps and not hidden(node.failed.users, private):
        lines.append(
            f"  {counted(node.failed.steps, 'step')} of {counted(node.failed.users, 'user')} died here this week"
        )
    return lines if len(lines) > 1 else [f"{node.name}: nothing is known against it"]


def spares(nodes: int, hours: float, failures: int, node_hours: float, *, sure: float = 0.95) -> int | None:
    """Return how many spare nodes a job needs so that it is `sure` not to lack one, or None: too little is known.

    nodes, hours           how many nodes the job has, and for how long
    failures, node_hours   what was measured: failures of nodes, and the node-hours in which they came

    The failures that come are taken as Poisson's, of nodes * hours * rate in the mean; the rate is that
    which the true one is below in 90 of 100 such histories, by Wilson and Hilferty's approximation of the chi-squared
    distribution: so little history makes for more spares. Fewer than 10,000 node-hours say nothing.
    """
    if node_hours < 10_000 or nodes < 1 or hours <= 0:
        return None
    degrees = 2 * (failures + 1)
    upper = degrees * (1 - 2 / (9 * degrees) + 1.2816 * math.sqrt(2 / (9 * degrees))) ** 3 / 2 / node_hours
    mean = nodes * hours * upper
    needed, total = 0, math.exp(-mean)
    while total < sure and needed < nodes:
        needed += 1
        total += math.exp(needed * math.log(mean) - mean - math.lgamma(needed + 1))
    return needed


def spares_line(nodes: int, hours: float, failures: int, node_hours: float) -> str | None:
    """Return advice on spares with what it rests on, or None: too little is known."""
    many = spares(nodes, hours, failures, node_hours)
    if many is None:
        return None
    measured = f"{counted(failures, 'failure')} in {node_hours:,.0f} node-hours here"
    spare = counted(many, "spare node") if many else "no spare node"
    return f"{spare} for {counted(nodes, 'node')} over {hours:g} h: {measured}"


def _long(seconds: float) -> str:
    if seconds < 7200:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.0f} hours" if seconds < 2 * 86400 else f"{seconds / 86400:.0f} days"
