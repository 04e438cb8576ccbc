"""The GPUs of this node for the sampler: NVML and GPM only, so that DCGM and Nsight have their unit for themselves.

Which of them a step has, the kernel does not tell (version 2 keeps devices in a program), and Slurm only in the
environment of the step's tasks, a user's bytes. So a step has those that a process of it has computed on, as NVML says,
and all of the node while no other job is on it; in the data stands which of the two it is.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from piolet.api import Collector, Reading, Target
from piolet.samples.choose import GPU_COLLECTORS, opened

_NAMES = ("gpm", "nvml")
_AGAIN_NS = 600 * 10**9
_TARGET = Target(gpus=None, period=10.0)


@dataclass(frozen=True)
class GpusRead:
    """One reading of all GPUs.

    devices    as in META of the layout
    readings   by place in `devices`
    users      processes by place
    blanks     missing values by quantity and reason
    why        why there is nothing, by collector
    failed     why there is nothing this time; '' where there is
    """

    columns: tuple[str, ...] = ()
    devices: tuple[dict[str, Any], ...] = ()
    readings: tuple[Reading, ...] = ()
    users: dict[int, set[int]] = field(default_factory=dict)
    blanks: dict[tuple[str, str], int] = field(default_factory=dict)
    why: dict[str, str] = field(default_factory=dict)
    collector: str = ""
    simulated: str = ""
    failed: str = ""


class Gpus:
    """Opens the better of the two, and again later where there is none; for one thread."""

    def __init__(self) -> None:
        self._collector: Collector | None = None
        self._why: dict[str, str] = {}
        self._again = 0

    def read(self, now: int) -> GpusRead:
        """Return what there is; the first call only takes counters. `now` is time.monotonic_ns()."""
        if self._collector is None and now >= self._again:
            self._again = now + _AGAIN_NS
            self._open()
        collector = self._collector
        if collector is None:
            return GpusRead(why=self._why)
        try:
            readings = tuple(collector.read(now))
        except Exception:
            self._close()  # its driver may be loaded anew: what was opened is of no use then
            raise
        blanks = dict(collector.blanks)
        collector.blanks.clear()
        places = range(len(collector.devices))
        return GpusRead(
            collector.quantities,
            tuple(asdict(device) for device in collector.devices),
            readings,
            {place: collector.processes(place) for place in places},  # type: ignore[attr-defined]
            blanks,
            self._why,
            collector.name,
            collector.simulated,
        )

    @property
    def asked(self) -> str:
        """The GPU that the library is being asked about, '' for none: it may be read while the library hangs."""
        asked = None if self._collector is None else self._collector.asked
        return "" if asked is None else asked[1] or asked[0]

    def _open(self) -> None:
        self._why = {}
        for name in _NAMES:
            self._collector, why = opened(GPU_COLLECTORS[name], _TARGET)
            if self._collector is not None:
                return
            self._why[name] = why

    def _close(self) -> None:
        collector, self._collector = self._collector, None
        if collector is not None:
            try:
                collector.close()
            except Exception as error:  # noqa: BLE001 - a library that has failed already
                self._why[collector.name] = f"it failed: {error}"
