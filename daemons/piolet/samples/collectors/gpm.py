"""NVML's GPM: the profiling counters of Hopper and later, without a daemon and without root.

Two samples of the hardware's counters, then the metrics between them: a value is the mean over the span, whatever
its length, so a late sample loses nothing. With them come the basic quantities of nvml.py.
"""

from __future__ import annotations

import ctypes
import math
import struct
from typing import Any, ClassVar

from piolet.api import Reading, Target, Unavailable

from .nvml import Nvml, Watched

# Our name, GPM's number, and what turns its unit into ours: percent into a share, MiB/s into B/s.
_SHARE, _RATE = 0.01, 1048576.0
METRICS: tuple[tuple[str, int, float], ...] = (
    ("engine", 1, _SHARE),
    ("sm", 2, _SHARE),
    ("occupancy", 3, _SHARE),
    ("tensor", 5, _SHARE),
    ("tensor_int", 9, _SHARE),
    ("tensor_half", 7, _SHARE),
    ("tensor_double", 6, _SHARE),
    ("fp64", 11, _SHARE),
    ("fp32", 12, _SHARE),
    ("fp16", 13, _SHARE),
    ("integer", 4, _SHARE),
    ("dram", 10, _SHARE),
    ("pcie_tx", 20, _RATE),
    ("pcie_rx", 21, _RATE),
    ("nvlink_tx", 61, _RATE),
    ("nvlink_rx", 60, _RATE),
    ("c2c_tx", 100, _RATE),
    ("c2c_rx", 101, _RATE),
)
_NO_METRICS, _NO_BASICS = (math.nan,) * len(METRICS), (math.nan,) * len(Nvml.quantities)
_ONE = "Iid24x"  # id, return code, value, three pointers to texts


class _Pair:
    """The two samples of a device, and the request that compares them."""

    def __init__(self, nvml: Any) -> None:
        self.older = nvml.nvmlGpmSampleAlloc()
        self.newer = nvml.nvmlGpmSampleAlloc()
        self.request = nvml.c_nvmlGpmMetricsGet_t()
        self.request.version = nvml.NVML_GPM_METRICS_GET_VERSION
        self.taken = 0
        # Reading 18 structures field by field through ctypes costs ten times what one unpack does.
        self.offset = type(self.request).metrics.offset
        self.view = memoryview(self.request).cast("B")

    def ask(self, count: int) -> None:
        self.request.numMetrics = count
        for index, (_, number, _) in enumerate(METRICS[:count]):
            self.request.metrics[index].metricId = number


class Gpm(Nvml):
    """The collector."""

    name = "gpm"
    text = "NVML GPM: the profiling counters of Hopper and later"
    least = 0.1
    quantities: ClassVar[tuple[str, ...]] = (*(name for name, _, _ in METRICS), *Nvml.quantities)

    def __init__(self) -> None:
        super().__init__()
        self._pairs: list[_Pair] = []
        self._layout = struct.Struct("<" + _ONE * len(METRICS))
        self._count = len(METRICS)

    def open(self, target: Target) -> None:
        """Begin; see Collector."""
        super().open(target)
        nvml = self.nvml
        try:
            for watched, device in zip(self.watched, self.devices, strict=True):
                self.asked = watched.name
                if not nvml.nvmlGpmQueryDeviceSupport(watched.parent).isSupportedDevice:
                    raise Unavailable(f"{device.name} has no GPM: that begins with Hopper")
            self._pairs = [_Pair(nvml) for _ in self.watched]
        except (nvml.NVMLError, AttributeError) as error:
            raise Unavailable(f"GPM does not work with this driver: {error}") from None
        if ctypes.sizeof(nvml.c_nvmlGpmMetric_t) != struct.calcsize("<" + _ONE):
            raise Unavailable("nvidia-ml-py has another layout of GPM's metrics than is known here")
        self.asked = None
        for pair in self._pairs:
            pair.ask(self._count)

    def read(self, now: int) -> list[Reading]:
        """Return one reading per device; see Collector. The first call only takes the first samples."""
        self.begin_read(now)
        readings = []
        for index, (watched, pair) in enumerate(zip(self.watched, self._pairs, strict=True)):
            self.asked = watched.name
            values, span = self._counters(watched, pair, now)
            passed = (now - watched.last) / 1e9 if watched.last else 0.0
            watched.last = now
            if 0 < span != passed:
                # After a failure the counters' mean is of all the time since; what else there is was told meanwhile.
                readings.append(Reading(index, now, span, (*values, *_NO_BASICS)))
                values = _NO_METRICS
            if passed > 0:
                readings.append(Reading(index, now, passed, (*values, *self.basic(watched, now))))
        self.asked = None
        return readings

    def _counters(self, watched: Watched, pair: _Pair, now: int) -> tuple[tuple[float, ...], float]:
        """Return the counters and the span that they cover, 0 without any."""
        nvml = self.nvml
        span = (now - pair.taken) / 1e9 if pair.taken else 0.0
        try:
            if watched.instance is None:
                nvml.nvmlGpmSampleGet(watched.parent, pair.newer)
            else:
                nvml.nvmlGpmMigSampleGet(watched.parent, watched.instance, pair.newer)
            values = self._between(pair) if span > 0 else _NO_METRICS
        except nvml.NVMLError as error:
            # The older sample stays: the next span simply is longer, if the device answers again.
            reason = str(error)
            return tuple(self.blank(name, reason) for name, _, _ in METRICS), 0.0
        pair.older, pair.newer, pair.taken = pair.newer, pair.older, now
        return values, span

    def _between(self, pair: _Pair) -> tuple[float, ...]:
        pair.request.sample1, pair.request.sample2 = pair.older, pair.newer
        self.nvml.nvmlGpmMetricsGet(pair.request)
        flat = self._layout.unpack_from(pair.view, pair.offset)
        return tuple(
            flat[3 * index + 2] * factor
            if flat[3 * index + 1] == 0 and math.isfinite(flat[3 * index + 2])
            else self.blank(name, self._reason(flat[3 * index + 1]))
            for index, (name, _, factor) in enumerate(METRICS)
        )

    def _reason(self, code: int) -> str:
        return str(self.nvml.NVMLError(code)) if code else "not a number"

    def close(self) -> None:
        """End; see Collector."""
        for pair in self._pairs:
            for sample in (pair.older, pair.newer):
                self.nvml.nvmlGpmSampleFree(sample)
        self._pairs = []
        super().close()
