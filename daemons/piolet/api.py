"""What evals, collectors and hooks are written against: the only module of Piolet that they import.

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


@dataclass(frozen=True)
class Verdict:
    """What an eval says of a node.

    outcome   'pass'; 'fail': the node is at fault; 'inconclusive': the check could not judge
    reason    one sentence; never empty unless the outcome is 'pass'
    measure   what was measured, or '' where nothing was: 'temperature'
    value     the number, the node's worst where there are several (of its GPUs, say)
    limit     the limit that it was held against, or None
    unit      of both: 'GB/s' (1e9 bytes per second), 'degC', 's', …
    details   more facts for the result file, plain JSON values
    """

    outcome: str
    reason: str = ""
    measure: str = ""
    value: float | None = None
    limit: float | None = None
    unit: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.outcome not in OUTCOMES:
            raise ValueError(f"a verdict is one of {', '.join(OUTCOMES)}, not {self.outcome!r}")
        if self.outcome != PASS and not self.reason:
            raise ValueError(f"a verdict '{self.outcome}' needs a reason")


class Inconclusive(Exception):  # noqa: N818 - it is no error of the node, and the name says what becomes of it
    """Raised by an eval that cannot judge; its text becomes the reason."""


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
    gpus      UUIDs or indices of the step's GPUs; None: all that can be seen
    environ   the step's environment
    scratch   a directory of this run that the eval may write to; it is removed afterwards
    facts     what only root can read, as pioletd found it: 'kernel_log' (a list of lines), …
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


# -- collectors of `--score`


class Unavailable(Exception):  # noqa: N818 - it is no error: the next collector is tried, and the report says why
    """Raised by a collector's `open` when it cannot collect here; the text is the reason that the report gives."""


@dataclass(frozen=True)
class Quantity:
    """One measured quantity: its name, its unit ('1' is a share of 0 to 1), and what it means."""

    name: str
    unit: str
    text: str


GPU_QUANTITIES = (
    Quantity("engine", "1", "share of time in which any engine of the GPU was active"),
    Quantity("sm", "1", "share of SM-cycles with at least one warp"),
    Quantity("occupancy", "1", "resident warps over the most that there could be"),
    Quantity("tensor", "1", "share of cycles in which a tensor pipe was active"),
    Quantity("tensor_int", "1", "of which integer"),
    Quantity("tensor_half", "1", "of which half precision"),
    Quantity("tensor_double", "1", "of which double precision"),
    Quantity("fp64", "1", "share of cycles in which the FP64 pipe was active"),
    Quantity("fp32", "1", "share of cycles in which the FP32 pipe was active"),
    Quantity("fp16", "1", "share of cycles in which the FP16 pipe was active"),
    Quantity("integer", "1", "share of cycles in which the integer pipe was active"),
    Quantity("dram", "1", "share of cycles in which device memory sent or received"),
    Quantity("pcie_tx", "B/s", "sent over PCIe"),
    Quantity("pcie_rx", "B/s", "received over PCIe"),
    Quantity("nvlink_tx", "B/s", "sent over NVLink"),
    Quantity("nvlink_rx", "B/s", "received over NVLink"),
    Quantity("c2c_tx", "B/s", "sent over the chip-to-chip link"),
    Quantity("c2c_rx", "B/s", "received over the chip-to-chip link"),
    Quantity("utilisation", "1", "share of time in which a kernel ran: what nvidia-smi calls GPU-Util"),
    Quantity("memory_used", "B", "device memory in use"),
    Quantity("power", "W", "power drawn"),
    Quantity("energy", "J", "the device's energy counter, which only grows"),
    Quantity("temperature", "degC", "of the GPU"),
    Quantity("memory_temperature", "degC", "of its memory"),
    Quantity("clock_sm", "MHz", "clock of the SMs"),
    Quantity("clock_memory", "MHz", "clock of the memory"),
    Quantity("clock_events", "mask", "why the clock is held back: nvmlClocksEventReason bits"),
    Quantity("xid", "code", "the last XID error; 0: none"),
)
HOST_QUANTITIES = (
    Quantity("cpu", "cores", "processor time used per second"),
    Quantity("cpu_throttled", "1", "share of time in which the CPU quota held the step back"),
    Quantity("memory", "B", "memory of the step, page cache included"),
    Quantity("memory_anon", "B", "memory of the step that is not page cache"),
    Quantity("read", "B/s", "read from block devices"),
    Quantity("write", "B/s", "written to block devices"),
    Quantity("net_rx", "B/s", "received by the node's network interfaces: of the node, not of the step"),
    Quantity("net_tx", "B/s", "sent by the node's network interfaces: of the node, not of the step"),
    Quantity("cpu_pressure", "1", "share of time in which some task waited for a CPU (PSI)"),
    Quantity("memory_pressure", "1", "share of time in which some task waited for memory (PSI)"),
    Quantity("io_pressure", "1", "share of time in which some task waited for I/O (PSI)"),
)


@dataclass(frozen=True)
class Device:
    """A GPU or a MIG instance that a collector watches; `memory` in bytes, 0: unknown."""

    uuid: str
    name: str
    memory: int = 0
    power_limit: float = 0.0
    mig: bool = False


@dataclass(frozen=True)
class Target:
    """What is to be measured.

    gpus      UUIDs or indices of the step's GPUs (as in CUDA_VISIBLE_DEVICES); None: all that can be seen
    groups    the step's control groups: (controller of version 1, or '' for version 2; directory); none: the whole node
    period    seconds between samples
    root      in front of /proc and /sys: tests put recorded trees there
    """

    gpus: tuple[str, ...] | None = None
    groups: tuple[tuple[str, str], ...] = ()
    period: float = 0.1
    root: str = ""


@dataclass(frozen=True)
class Reading:
    """One sample: the means over `span` seconds that ended at `end`, of the quantities of its collector, in order.

    device   index into the collector's `devices`; -1: the host
    end      nanoseconds of time.monotonic_ns()
    values   NaN where the source gave nothing
    """

    device: int
    end: int
    span: float
    values: tuple[float, ...]


class Collector:
    """The base class of collectors: one source of figures, for one step.

    name         the short name in reports and in collector=NAME
    text         what it is, one line
    least        the smallest period that the source can give, in seconds
    quantities   names, of GPU_QUANTITIES or of HOST_QUANTITIES, that `read` gives, in order
    devices      what it watches, known after `open`
    simulated    the text with which a simulator names itself, '' for a real source
    source       the library's and the driver's versions
    blanks       how many values were missing, by quantity and reason
    """

    name: ClassVar[str] = ""
    text: ClassVar[str] = ""
    least: ClassVar[float] = 0.1
    quantities: ClassVar[tuple[str, ...]] = ()

    def __init__(self) -> None:
        self.devices: tuple[Device, ...] = ()
        self.simulated = ""
        self.source = ""
        self.blanks: dict[tuple[str, str], int] = {}

    def blank(self, quantity: str, reason: str) -> float:
        """Count a missing value and return NaN."""
        self.blanks[quantity, reason] = self.blanks.get((quantity, reason), 0) + 1
        return math.nan

    def open(self, target: Target) -> None:
        """Begin. Raises Unavailable."""
        raise NotImplementedError

    def read(self, now: int) -> list[Reading]:
        """Return what has come since the last call; `now` is time.monotonic_ns(). Must not block for long."""
        raise NotImplementedError

    def rest(self, now: int) -> list[Reading]:
        """Return at the step's end what `read` has not given out yet; most keep nothing back."""
        return []

    def close(self) -> None:
        """End, and leave nothing behind in the source; called once, also after a failed `open`."""
