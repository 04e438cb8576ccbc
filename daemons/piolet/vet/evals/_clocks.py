"""Is a GPU as fast as its clocks can be? What NVML tells of them, at rest and under load. Runs under Python 3.8."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from piolet.vet.evals import _nvml

if TYPE_CHECKING:  # Python 3.8 cannot evaluate it
    from collections.abc import Callable

    Busy = Callable[[], bool]

# nvmlClocksEventReason: those that are a fault of the node, and those that explain a low clock.
_FAULTS = {0x08: "hardware slowdown", 0x20: "software thermal slowdown", 0x40: "hardware thermal slowdown",
           0x80: "power brake"}  # fmt: skip
_IDLE, _SETTING = 0x01, 0x02
_NAMES = {0x04: "its power cap", 0x10: "sync boost", 0x100: "the display"}
LOW = 1 / 3
"""Of the most: far below what any GPU keeps while it has no reason to be slow."""
_LOOKS, _LOOK_S = 3, 0.1
"""A clock that rises takes less than a look; one that is stuck is low at each."""
_BUSY_PERCENT = 50
_AVERAGE_S = 1.2
"""Longer than what NVML's utilisation is the mean of: what was done before has left it."""


def reasons(nvml: _nvml.Nvml, gpu: _nvml.Gpu) -> int | None:
    """Return the mask of reasons for which clocks are lower than they could be, or None: the GPU does not tell."""
    found = nvml.ask("nvmlDeviceGetCurrentClocksEventReasons", gpu.whole)
    if found is None:
        found = nvml.ask("nvmlDeviceGetCurrentClocksThrottleReasons", gpu.whole)
    return found if found is None else int(found)


def problems(nvml: _nvml.Nvml, gpu: _nvml.Gpu, now: int) -> Iterator[tuple[str, str]]:
    """Yield what is wrong: a row of the table of severities, and more words; `now` are the reasons of this moment.

    Low clocks of an idle GPU are none: nothing is known of what they are under load. One that computes all the time
    at such clocks is not idle, whatever it says.
    """
    for bit, name in _FAULTS.items():
        if now & bit:
            yield "clocks_slowed", f": {name}"
    if now & ~(_SETTING | _IDLE | sum(_NAMES)):
        return
    low = _low(nvml, gpu)
    if low is None:
        return
    clock, most, mask = low
    if mask & _IDLE:
        if not _is_busy(nvml, gpu):
            return
        time.sleep(_AVERAGE_S)
        low = _low(nvml, gpu)
        if low is None or not _is_busy(nvml, gpu):
            return
        clock, most, mask = low
    yield _code(mask), f": {clock} of {most} MHz" + ("" if not mask & sum(_NAMES) else f", for {_names(mask)}")


def under_load(nvml: _nvml.Nvml, gpu: _nvml.Gpu, busy: Busy) -> tuple[str, str, int] | None:
    """Return what is wrong with the clocks while the GPU computes, as in `problems`, with the clock; None: nothing.

    `busy` says whether it still computes: only what was looked at before that ended counts.
    """
    most = nvml.ask("nvmlDeviceGetMaxClockInfo", gpu.whole, 1)
    seen: list[tuple[int, int]] = []
    while most:
        clock = nvml.ask("nvmlDeviceGetClockInfo", gpu.whole, 1)
        mask = reasons(nvml, gpu)
        if clock is None or not busy():
            break
        seen.append((clock, mask or 0))
        time.sleep(_LOOK_S / 2)
    if len(seen) < 2 or not most:
        return None
    clock, mask = max(seen)
    if clock > most * LOW:
        return None
    return _code(mask & ~_IDLE), f": {clock} of {most} MHz under load", clock


def _code(mask: int) -> str:
    if mask & sum(_NAMES):
        return "clocks_capped"
    return "clocks_locked" if mask & _SETTING else "clocks_stuck"


def _names(mask: int) -> str:
    return " and ".join(name for bit, name in _NAMES.items() if mask & bit)


def _is_busy(nvml: _nvml.Nvml, gpu: _nvml.Gpu) -> bool:
    used = nvml.ask("nvmlDeviceGetUtilizationRates", gpu.whole)
    return used is not None and used.gpu >= _BUSY_PERCENT


def _low(nvml: _nvml.Nvml, gpu: _nvml.Gpu) -> tuple[int, int, int] | None:
    """Return clock, the most and the reasons if the clock is low at each of several looks."""
    most = nvml.ask("nvmlDeviceGetMaxClockInfo", gpu.whole, 1)
    clock, mask = 0, 0
    for look in range(_LOOKS):
        now, mask_now = nvml.ask("nvmlDeviceGetClockInfo", gpu.whole, 1), reasons(nvml, gpu)
        if not most or now is None or mask_now is None or now > most * LOW:
            return None
        clock, mask = now, mask_now
        if look + 1 < _LOOKS:
            time.sleep(_LOOK_S)
    return clock, most, mask
