"""The contract of collectors: sources of figures for `--score`."""

from __future__ import annotations

import errno
import math
from dataclasses import dataclass
from typing import Any, ClassVar


class Unavailable(Exception):  # noqa: N818 - it is no error: the next collector is tried, and the report says why
    """Raised by a collector's `open` when it cannot collect here; the text is the reason that the report gives."""


@dataclass(frozen=True)
class Device:
    """A GPU or a MIG instance that a collector watches; bytes, W and MHz, 0: unknown.

    clock_sm_max, clock_memory_max    the highest that the clocks can be
    power_limit, power_limit_default    that which holds, and that which it has if nobody sets another
    pcie    what its PCIe link can carry in one direction, in this machine: bytes per second
    """

    uuid: str
    name: str
    memory: int = 0
    power_limit: float = 0.0
    mig: bool = False
    clock_sm_max: float = 0.0
    clock_memory_max: float = 0.0
    pcie: float = 0.0
    power_limit_default: float = 0.0


@dataclass(frozen=True)
class Target:
    """What is to be measured.

    gpus      UUIDs, indices (as in CUDA_VISIBLE_DEVICES) or device files (/dev/nvidiaN; N is the driver's minor number
              and not always an index) of the step's GPUs; None: all that can be seen
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
    facts        what else is known of the node, for JSON: "gpus" (how many it has), "nics" (line rates, B/s, by name)
    blanks       how many values were missing, by quantity and reason
    asked        the GPU that the source is being asked about: its name in Target, and its UUID, '' until that is known.
                 A GPU that hangs in its driver is told by it, and the others are measured on; None: about none of them
    """

    name: ClassVar[str] = ""
    text: ClassVar[str] = ""
    least: ClassVar[float] = 0.1
    quantities: ClassVar[tuple[str, ...]] = ()

    def __init__(self) -> None:
        self.devices: tuple[Device, ...] = ()
        self.simulated = ""
        self.source = ""
        self.facts: dict[str, Any] = {}
        self.blanks: dict[tuple[str, str], int] = {}
        self.asked: tuple[str, str] | None = None

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


def why_unread(error: Exception) -> str:
    """Return why a file of a step's control group was not read: one that is gone is no fault, and says so in words."""
    if isinstance(error, OSError) and error.errno in (errno.ENOENT, errno.ENODEV):
        return "the control group is gone: the step has ended"
    return f"{type(error).__name__}: {error}"[:120]
