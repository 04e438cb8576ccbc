"""Are the InfiniBand ports up, at full rate, and free of errors?"""

from __future__ import annotations

import glob
import os
import time
from dataclasses import dataclass

from piolet.api import EITHER, FAIL, NODE, PASS, Context, Eval, Inconclusive, Verdict, parameter
from piolet.vet.evals import _files
from piolet.vet.evals._severities import sourced

_HOUR = 3600.0
_LOOK_S = 1.0
_SOME = 3
"""So many errors between two readings are a rate; one or two may be chance."""


@dataclass(frozen=True)
class Counter:
    """How often an error may come: `per_hour`, or, if that is 0, as often as one bit of `bits` is wrong.

    `fast` errors come by the second on a bad link: a port that ever had one is looked at again.
    """

    name: str
    per_hour: float
    bits: float
    fast: bool
    source: str
    date: str

    def __post_init__(self) -> None:
        sourced(f"the limit of {self.name}", self.source, self.date)

    def limit(self, gigabits: float) -> float:
        """Return the most errors in an hour on a port of that rate in Gbit/s."""
        return self.per_hour or gigabits * 1e9 * _HOUR / self.bits


_UFM = "NVIDIA UFM-SDN Appliance User Manual v4.18, 'Supported Traps and Events': default threshold; the hour is ours"
_OURS = "ours: no vendor's limit is published"
COUNTERS = (
    Counter("symbol_error", 0.0, 1e12, True, "NVIDIA ibdiagnet manual v2.21, bit error rate: 10^-12", "2026-11-29"),
    Counter("excessive_buffer_overrun_errors", 100.0, 0.0, False, _UFM, "2026-11-29"),
    Counter("VL15_dropped", 50.0, 0.0, False, _UFM, "2026-11-29"),
    Counter("port_rcv_errors", 100.0, 0.0, True, _OURS, "2026-11-29"),
    Counter("local_link_integrity_errors", 10.0, 0.0, True, _OURS, "2026-11-29"),
    Counter("link_error_recovery", 10.0, 0.0, True, _OURS, "2026-11-29"),
    Counter("link_downed", 1.0, 0.0, False, _OURS, "2026-11-29"),
)
"""The counters begin with the adapter's driver, or when somebody resets them: at most as long ago as the boot."""


@dataclass(frozen=True)
class Infiniband(Eval):
    """Reads the ports of every adapter."""

    name = "infiniband"
    text = "InfiniBand ports are active, at their rate, and count few errors"
    how = "state, rate and counters of every InfiniBand port: errors an hour since the boot, and in a second of looking"
    source = "/sys/class/infiniband"
    needs = "InfiniBand adapters"
    unit = "Gbit/s"
    better = "higher"

    devices: tuple[str, ...] = parameter((), text="the adapters that must be there; without it, all that are")
    min_rate: float = parameter(0.0, text="the least rate of each port", unit="Gbit/s", least=0)
    max_error_rate: float = parameter(0.0, text="errors of each kind; 0: the vendors' limits", unit="1/h", least=0)
    max_link_downed: float = parameter(1.0, text="how often a link may go down", unit="1/h", least=0)

    def check(self, context: Context) -> Verdict:
        """Name every port that is wrong."""
        base = context.path("/sys/class/infiniband")
        there = sorted(glob.glob(f"{base}/*/ports/*"))
        ports = [port for port in there if _files.text(f"{port}/link_layer") != "Ethernet"]
        known, judged = ({_adapter(port) for port in some} for some in (there, ports))
        wrong = [f"{name} is missing" for name in self.devices if name not in known]
        wrong += [f"{name} has no InfiniBand port" for name in self.devices if name in known - judged]
        if not ports and not wrong:
            what = "no adapter has an InfiniBand port" if there else "there are no InfiniBand adapters"
            raise Inconclusive(what)
        rates: dict[str, float] = {}
        for port in ports:
            if not self.devices or _adapter(port) in self.devices:
                rate, problems = self._port(port)
                wrong += [f"{_called(port)} {problem}" for problem in problems]
                if rate is not None:
                    rates[port] = rate
        errors, counted = self._errors(context, rates)
        # Which adapters and rates there must be says the protocol.
        sick = errors or [text for text in wrong if text.endswith("not ACTIVE")]
        slowest = min(rates.values(), default=None)
        limit, reason = self.min_rate or None, "; ".join(wrong + errors)[:500]
        return Verdict(
            FAIL if reason else PASS,
            reason,
            "slowest port",
            slowest,
            limit,
            "Gbit/s",
            counted,
            NODE if sick else EITHER,
        )

    def _port(self, port: str) -> tuple[float | None, list[str]]:
        state = (_files.text(f"{port}/state") or "unknown").partition(":")[2].strip()
        physical = (_files.text(f"{port}/phys_state") or "unknown").partition(":")[2].strip()
        wrong = []
        if state != "ACTIVE":
            wrong.append(f"is {state or 'in an unknown state'} ({physical or 'unknown'}), not ACTIVE")
        words = (_files.text(f"{port}/rate") or "").split()
        try:
            rate = float(words[0])
        except (IndexError, ValueError):
            return None, [*wrong, "tells no rate"]
        if rate < self.min_rate:
            wrong.append(f"runs at {rate:g} Gbit/s, {self.min_rate:g} are wanted")
        return rate, wrong

    def _errors(self, context: Context, rates: dict[str, float]) -> tuple[list[str], dict[str, object]]:
        """Return the errors that come too often on ports of these rates, and all that were counted."""
        hours = _hours(context)
        first, at = {port: _counts(port) for port in rates}, time.monotonic()
        counted = {_called(port): {name: count for name, count in first[port].items() if count} for port in rates}
        found = []
        fast = {counter.name for counter in COUNTERS if counter.fast}
        look = [port for port in rates if fast & counted[_called(port)].keys()]
        if look:
            time.sleep(min(_LOOK_S, context.remaining() / 2))
        elapsed = (time.monotonic() - at) / _HOUR
        for port, rate in rates.items():
            again = _counts(port) if port in look else {}
            for counter in COUNTERS:
                count, more = first[port].get(counter.name, 0), again.get(counter.name, 0)
                limit, often = self._limit(counter, rate), ""
                if more - count >= _SOME and (more - count) / elapsed > limit:
                    often = f"{more - count} in {elapsed * _HOUR:.1f} s"
                elif hours is not None and count / hours > limit:
                    often = f"{count} in {hours:.3g} hours"
                if often:
                    found.append(f"{_called(port)} counts {counter.name}: {often}, {limit:.4g} an hour are allowed")
        return found, {"counted": counted, "hours": hours}

    def _limit(self, counter: Counter, rate: float) -> float:
        if counter.name == "link_downed":
            return self.max_link_downed
        return self.max_error_rate or counter.limit(rate)


def _hours(context: Context) -> float | None:
    """Return for how long the ports may have counted: since the boot, at least an hour. None: that is unknown."""
    try:
        up_s = float((_files.text(context.path("/proc/uptime")) or "").split()[0])
    except (IndexError, ValueError):
        return None
    return max(up_s, _HOUR) / _HOUR


def _counts(port: str) -> dict[str, int]:
    """Return the counters that a port has."""
    found = {counter.name: _files.number(f"{port}/counters/{counter.name}") for counter in COUNTERS}
    return {name: count for name, count in found.items() if count is not None}


def _called(port: str) -> str:
    return f"{_adapter(port)} port {os.path.basename(port)}"


def _adapter(port: str) -> str:
    return port.split("/")[-3]
