"""The contract of evals.

An eval is one class. Its parameters are the fields of a dataclass, its answer is a `Verdict`, and what it may
know of the node and the step is in its `Context`. This module runs under any Python from 3.8 on, since evals
also run inside images (annotations are never evaluated there); it imports the standard library only.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

PASS, FAIL, INCONCLUSIVE = "pass", "fail", "inconclusive"
OUTCOMES = (PASS, FAIL, INCONCLUSIVE)
NODE, USER, EITHER = "node", "user", ""
"""Whose problem a verdict tells of: the node's, the user's or the protocol's, or either's."""


@dataclass(frozen=True)
class Verdict:
    """What an eval says of a node.

    outcome   'pass'; 'fail': the node is at fault; 'inconclusive': the check could not judge
    reason    one sentence; never empty unless the outcome is 'pass'. With 'pass' it is a warning: the node is good, the
              reason is shown, and nodes without one are taken first
    measure   what was measured, or '' where nothing was: 'temperature'
    value     the number, the node's worst where there are several (of its GPUs, say)
    limit     the limit that it was held against, or None
    unit      of both: 'GB/s' (1e9 bytes per second), 'degC', 's', …
    details   more facts for the result file, plain JSON values
    whose     whose problem it is, unless it passed. NODE: that of its hardware or system, even if all nodes have it.
              USER: the user's or the protocol's, however many nodes have it: a variable, a module, a limit.
              EITHER: it counts as the user's only if at least 3 nodes, and all there are, have it
    """

    outcome: str
    reason: str = ""
    measure: str = ""
    value: float | None = None
    limit: float | None = None
    unit: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    whose: str = EITHER

    def __post_init__(self) -> None:
        if self.whose not in (NODE, USER, EITHER):
            raise ValueError(f"a problem is the {NODE}'s, the {USER}'s or, as '', either's, not {self.whose!r}")
        if self.outcome not in OUTCOMES:
            raise ValueError(f"a verdict is one of {', '.join(OUTCOMES)}, not {self.outcome!r}")
        if self.outcome != PASS and not self.reason:
            raise ValueError(f"a verdict '{self.outcome}' needs a reason")


class Inconclusive(Exception):  # noqa: N818 - it is no error of the node, and the name says what becomes of it
    """Raised by an eval that cannot judge; its text becomes the reason, and `whose` is as in a Verdict."""

    def __init__(self, reason: str = "", whose: str = EITHER) -> None:
        super().__init__(reason)
        self.whose = whose


def at_most(measure: str, value: float, limit: float | None, unit: str, **details: Any) -> Verdict:
    """Return a verdict: 'fail' when `value` is above `limit`."""
    return _limited(measure, value, limit, unit, details, limit is not None and value > limit, "above")


def at_least(measure: str, value: float, limit: float | None, unit: str, **details: Any) -> Verdict:
    """Return a verdict: 'fail' when `value` is below `limit`."""
    return _limited(measure, value, limit, unit, details, limit is not None and value < limit, "below")


def _limited(
    measure: str, value: float, limit: float | None, unit: str, details: Mapping[str, Any], bad: bool, word: str
) -> Verdict:
    if math.isnan(value):  # it compares false with every limit, so it would pass
        return Verdict(INCONCLUSIVE, f"{measure} is not a number", measure, None, limit, unit, details)
    reason = f"{measure} {value:.4g} {unit} is {word} the limit of {limit:.4g} {unit}" if bad else ""
    return Verdict(FAIL if bad else PASS, reason, measure, value, limit, unit, details)


def worst(verdicts: list[Verdict]) -> Verdict:
    """Return the one that decides: the first 'fail', else the first 'inconclusive', else the first one."""
    if not verdicts:
        return Verdict(INCONCLUSIVE, "nothing was checked")
    return min(verdicts, key=lambda verdict: (FAIL, INCONCLUSIVE, PASS).index(verdict.outcome))


@dataclass(frozen=True)
class Context:
    """What an eval may know. Paths are the step's own.

    node      this node's name
    nodes     all nodes of this vetting, this one included
    deadline  on time.monotonic(): the eval is killed then, so it answers before
    uid       the user whom the step is of
    gpus      UUIDs, indices or device files (/dev/nvidiaN; N is the driver's minor number) of the step's GPUs;
              None: all that can be seen
    environ   the step's environment
    scratch   a directory of this run that the eval may write to; it is removed afterwards
    facts     what only root can read, as pioletd found it: 'kernel_log' (lines like those of dmesg), …
    root      in front of /proc and /sys: tests put recorded trees there
    """

    node: str
    deadline: float
    nodes: tuple[str, ...] = ()
    uid: int = -1
    gpus: tuple[str, ...] | None = None
    environ: Mapping[str, str] = field(default_factory=dict)
    scratch: str = "/tmp"  # noqa: S108 - a default for tests; the runner gives a directory of its own
    facts: Mapping[str, Any] = field(default_factory=dict)
    root: str = ""

    def remaining(self) -> float:
        """Return the seconds until the deadline, at least 0."""
        return max(0.0, self.deadline - time.monotonic())

    def path(self, name: str) -> str:
        """Return the absolute path `name` below `root`."""
        return self.root + name


def parameter(default: Any = dataclasses.MISSING, *, text: str, unit: str = "", least: float | None = None) -> Any:
    """Declare a parameter of an eval.

    unit    what a plain number means, and what quantities a protocol may write: 'B' (then '8 GB' and '2 GiB'
            are understood), 'GB/s', 's' ('30s', '5 min'), or any other text, which is documentation
    least   smaller values are refused
    """
    metadata = {"text": text, "unit": unit, "least": least}
    if isinstance(default, (dict, list)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


class Eval:
    """The base class of evals. A subclass is a frozen dataclass whose fields are its parameters.

    name       the short name in protocols
    text       what it checks, one line
    how        by which means
    source     where the figures come from
    needs      what must be there for a verdict; empty: nothing
    unit       of the value
    better     'higher' or 'lower': what comparing with peers means; '': the value cannot be compared
    scope      'node': each node for itself; 'pair': two nodes, in rounds; 'group': all nodes together
    loads      what it saturates, or must find idle: of 'cpu', 'memory', 'disk', 'network', 'gpu'. Evals that load the
               same run one after the other; all others run side by side
    timeout_s  the deadline when the protocol has none
    effect     the smallest relative distance from the peers' median that is worth a 'fail'
    """

    name: ClassVar[str] = ""
    text: ClassVar[str] = ""
    how: ClassVar[str] = ""
    source: ClassVar[str] = ""
    needs: ClassVar[str] = ""
    unit: ClassVar[str] = ""
    better: ClassVar[str] = ""
    scope: ClassVar[str] = "node"
    loads: ClassVar[frozenset[str]] = frozenset()
    timeout_s: ClassVar[float] = 5.0
    effect: ClassVar[float] = 0.1

    @classmethod
    def scope_of(cls, parameters: Mapping[str, Any]) -> str:
        """Return the scope with these parameters."""
        return cls.scope

    def check(self, context: Context) -> Verdict:
        """Judge this node. Whatever is raised makes the verdict 'inconclusive'."""
        raise NotImplementedError
