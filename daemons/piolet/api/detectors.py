"""The contract of detectors: what is wrong in the data of one step, as findings, each with its evidence.

A detector is one file with one class. It is given a step's data, opens, starts and asks nothing itself, and says one
of three things: findings; nothing, which means that it looked and found nothing; or that it cannot tell, with the
reason (CannotTell). Missing data is the third, never the second.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol


class CannotTell(Exception):  # noqa: N818 - it is no error: the data do not say it, and the text says why
    """Raised by a detector that cannot judge this step; the text is the reason, without a full stop."""


@dataclass(frozen=True)
class Limit:
    """A threshold: its value and unit, where it comes from, and the day on which that was so."""

    value: float
    unit: str
    source: str
    date: str


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    effect      how large it is, in the detector's unit
    text        what was found, one sentence with figures
    advice      what to do
    start, end  nanoseconds since 1970; None: all of the step
    node        name of the node; None: of the step as a whole
    subject     which part: the UUID of a GPU, a port, a mount point; None: none
    evidence    the figures behind it, plain JSON values
    confidence  1 minus the rate of false positives that was measured; None: nobody has measured it. What Piolet has
                measured of its own detectors it fills in itself
    unit        of the effect, where it is not the detector's
    """

    effect: float
    text: str
    advice: str
    start: int | None = None
    end: int | None = None
    node: str | None = None
    subject: str | None = None
    evidence: Mapping[str, Any] = field(default_factory=dict)
    confidence: float | None = None
    unit: str = ""


@dataclass(frozen=True)
class Gpu:
    """A GPU of the step: node, index there, UUID, and what is known of it (keys of collectors.Device)."""

    node: str
    index: int
    uuid: str
    facts: Mapping[str, Any] = field(default_factory=dict)


class Observed(Protocol):
    """What a detector is given: tables of the layout (docs/observe.md), and the same on one grid of time.

    The grid has `bins` of `width` seconds, of which the first begins at `start`. Arrays are numpy's, float64, NaN where
    there was no sample. Clocks of nodes are put right, samples that came twice or out of order are in their bin.
    """

    @property
    def name(self) -> str:
        """Return "112.0"."""

    @property
    def meta(self) -> Mapping[str, Any]:
        """What meta.json says."""

    @property
    def start(self) -> int:
        """Nanoseconds since 1970."""

    @property
    def end(self) -> int:
        """Nanoseconds since 1970; of a step that runs the last of what is known."""

    @property
    def nodes(self) -> Sequence[str]:
        """Names of the step's nodes."""

    @property
    def gpus(self) -> Sequence[Gpu]:
        """The GPUs that there are samples of, by node and index."""

    @property
    def width(self) -> float:
        """Seconds that a bin has."""

    @property
    def bins(self) -> int:
        """How many bins there are."""

    def table(self, name: str, columns: Sequence[str] | None = None) -> Any:
        """Return a table of the layout as pyarrow has it; without rows where there is none."""

    def gpu(self, quantity: str) -> Any:
        """Return means of a quantity of `gpu`: (gpus, bins)."""

    def gpu_bits(self, quantity: str, bits: int) -> Any:
        """Return the share of samples in which one of these bits of a mask is set: (gpus, bins)."""

    def host(self, quantity: str) -> Any:
        """Return means of a quantity of `host`: (nodes, bins)."""

    def lines(self, table: str, quantity: str) -> tuple[list[tuple[str, str]], Any]:
        """Return (node, mount or port) for each line of `io` or `net`, and its means: (lines, bins)."""

    def marks(self, word: str) -> dict[str, tuple[Any, Any]]:
        """Return the marks in whose name `word` (a regular expression) is found: seconds since the start, values.

        A value that is no number is NaN, and so is the time of a mark that was found in output without one: these are
        last, in the order in which they were written.
        """

    def contradicted(self) -> Any:
        """Return in which bins utilisation contradicts the profiling counters beside it: (gpus, bins), booleans."""

    def time(self, at: float) -> int:
        """Return nanoseconds since 1970 of the bin's begin; `at` counts bins."""


class Detector:
    """The base class of detectors.

    name      the short name: that of its file, and in findings
    version   grows when it would find other things in the same data
    text      what it finds, one line
    how       by which signs
    needs     without what it cannot tell
    effect    the effect from which on it is meant to find it, in `unit`
    unit      of the effect: '1' is a share of 0 to 1
    limits    its thresholds by name, each with its source
    """

    name: ClassVar[str] = ""
    version: ClassVar[int] = 1
    text: ClassVar[str] = ""
    how: ClassVar[str] = ""
    needs: ClassVar[str] = ""
    effect: ClassVar[float] = 0.0
    unit: ClassVar[str] = ""
    limits: ClassVar[Mapping[str, Limit]] = {}

    def limit(self, name: str) -> float:
        """Return a threshold's value."""
        return self.limits[name].value

    def find(self, step: Observed) -> Iterable[Finding]:
        """Return or yield what is found. Raises CannotTell."""
        raise NotImplementedError


def with_confidence(finding: Finding, confidence: float | None) -> Finding:
    """Return the finding with a confidence, unless it has one."""
    return finding if finding.confidence is not None else dataclasses.replace(finding, confidence=confidence)
