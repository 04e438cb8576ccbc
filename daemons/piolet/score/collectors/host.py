"""The host's part of a step: processors, memory, I/O and pressure, from its cgroup; the node's network.

Counters are read as they are in /sys/fs/cgroup (version 2) and /proc; a value is the difference over the span.
Without a cgroup of its own, as on a laptop, the whole node is measured.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path

from piolet.api import HOST_QUANTITIES, Collector, Reading, Target, Unavailable


class Host(Collector):
    """The collector."""

    name = "host"
    text = "processors, memory, I/O and pressure of the step, from its cgroup"
    least = 0.5
    quantities = tuple(quantity.name for quantity in HOST_QUANTITIES)

    def __init__(self) -> None:
        super().__init__()
        self._proc = Path("/proc")
        self._interfaces = Path("/sys/class/net")
        self._group: Path | None = None
        self._last: dict[str, float] = {}
        self._taken = 0
        self._tick = 1 / os.sysconf("SC_CLK_TCK")

    def open(self, target: Target) -> None:
        """Begin; see Collector."""
        self._proc = Path(target.root + "/proc")
        self._interfaces = Path(target.root + "/sys/class/net")
        if not (self._proc / "stat").exists():
            raise Unavailable("/proc is not there")
        if target.cgroup:
            group = Path(f"{target.root}/sys/fs/cgroup") / target.cgroup.lstrip("/")
            self._group = group if (group / "cpu.stat").exists() else None
            if self._group is None:
                self.blanks["cgroup", f"{group} has no cpu.stat: the whole node is measured"] = 1
        self.source = f"cgroup {target.cgroup}" if self._group else "the whole node"

    def read(self, now: int) -> list[Reading]:
        """Return one reading; see Collector. The first call only takes the counters."""
        counters: dict[str, float] = {}
        gauges: dict[str, float] = {}
        for part in (self._cpu, self._memory, self._io, self._network, self._pressure):
            try:
                part(counters, gauges)
            except (OSError, ValueError, IndexError, KeyError) as error:
                self.blank(part.__name__.strip("_"), f"{type(error).__name__}: {error}"[:120])
        span = (now - self._taken) / 1e9 if self._taken else 0.0
        last, self._last, self._taken = self._last, counters, now
        if span <= 0:
            return []
        values = []
        for name in self.quantities:
            if name in gauges:
                values.append(gauges[name])
            elif name in counters and name in last and counters[name] >= last[name]:
                values.append((counters[name] - last[name]) / span)
            else:
                values.append(math.nan)
        return [Reading(-1, now, span, tuple(values))]

    def _read(self, name: str) -> str:
        assert self._group is not None
        return (self._group / name).read_text()

    def _cpu(self, counters: dict[str, float], _: dict[str, float]) -> None:
        if self._group is None:
            fields = (self._proc / "stat").read_text().split("\n", 1)[0].split()[1:]
            used = sum(map(int, fields[:3])) + sum(map(int, fields[5:8]))
            counters["cpu"] = used * self._tick
            return
        stat = _pairs(self._read("cpu.stat"))
        counters["cpu"] = stat["usage_usec"] / 1e6
        if "throttled_usec" in stat:
            counters["cpu_throttled"] = stat["throttled_usec"] / 1e6

    def _memory(self, _: dict[str, float], gauges: dict[str, float]) -> None:
        if self._group is None:
            info = {line.split(":")[0]: float(line.split()[1]) * 1024 for line in self._lines("meminfo")}
            gauges["memory"] = info["MemTotal"] - info["MemFree"]
            gauges["memory_anon"] = info["AnonPages"]
            return
        gauges["memory"] = float(self._read("memory.current"))
        gauges["memory_anon"] = _pairs(self._read("memory.stat"))["anon"]

    def _io(self, counters: dict[str, float], _gauges: dict[str, float]) -> None:
        if self._group is None:
            disks = [line.split() for line in self._lines("diskstats")]
            # Whole disks only: what goes through a partition or a mapping is counted below it as well.
            whole = [d for d in disks if not d[2].startswith(("loop", "ram", "dm-", "zram")) and not _is_part(d[2])]
            counters["read"] = sum(float(d[5]) for d in whole) * 512
            counters["write"] = sum(float(d[9]) for d in whole) * 512
            return
        sums = {"rbytes": 0.0, "wbytes": 0.0}
        for word in self._read("io.stat").split():
            name, found, value = word.partition("=")
            if found and name in sums:
                sums[name] += float(value)
        counters["read"], counters["write"] = sums["rbytes"], sums["wbytes"]

    def _network(self, counters: dict[str, float], _gauges: dict[str, float]) -> None:
        received = sent = 0.0
        for line in self._lines("net/dev")[2:]:
            name, _, rest = line.partition(":")
            # Only devices: what goes through a bond, a VLAN or a bridge goes through one of them as well.
            if (self._interfaces / name.strip() / "device").exists():
                fields = rest.split()
                received, sent = received + float(fields[0]), sent + float(fields[8])
        counters["net_rx"], counters["net_tx"] = received, sent

    def _pressure(self, counters: dict[str, float], _: dict[str, float]) -> None:
        read: Callable[[str], str] = (
            (lambda name: (self._proc / "pressure" / name).read_text())
            if self._group is None
            else (lambda name: self._read(f"{name}.pressure"))
        )
        for name in ("cpu", "memory", "io"):
            some = read(name).split("\n", 1)[0]
            counters[f"{name}_pressure"] = float(some.rpartition("total=")[2]) / 1e6

    def _lines(self, name: str) -> list[str]:
        return (self._proc / name).read_text().splitlines()

    def close(self) -> None:
        """Nothing is held."""


def _pairs(text: str) -> dict[str, float]:
    return {words[0]: float(words[1]) for words in (line.split() for line in text.splitlines()) if len(words) == 2}


def _is_part(name: str) -> bool:
    if name.startswith(("nvme", "mmcblk")):
        return "p" in name.rpartition("n" if name.startswith("nvme") else "k")[2]
    return name[-1:].isdigit() and not name.startswith(("md", "sr"))
