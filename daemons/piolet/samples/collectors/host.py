"""The host's part of a step: processors, memory, I/O and pressure, from its control groups; the node's network.

Counters are read as they are in the control groups and in /proc; a value is the difference over the span. Each quantity
comes from the hierarchy that has its controller: version 2, version 1, or one of each where a node has both. Where
Slurm made the step no group of cpuacct, which it does for jobacct_gather/cgroup only, its processor time is that of the
processes in its other groups. What no group tells is missing, never zero and never the node's.

Without any group of its own, as on a laptop, the whole node is measured.
"""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from piolet.api import HOST_QUANTITIES, Collector, Reading, Target, Unavailable, why_unread

from ._network import Network

_PROCESSES_MAX = 4096
_NO_WRITES = "control groups of version 1 do not count what is written by way of the page cache"


class _MissingError(Exception):
    """The kernel does not tell this of the step; the text says why."""


class HostCollector(Collector):
    """The collector."""

    name = "host"
    text = "processors, memory, I/O and pressure of the step, from its control groups"
    least = 0.5
    quantities = tuple(quantity.name for quantity in HOST_QUANTITIES)

    def __init__(self) -> None:
        super().__init__()
        self._proc = Path("/proc")
        self._interfaces = Path("/sys/class/net")
        self._what: _Node | _Step = _Node(self._proc)
        self._last: dict[str, float] = {}
        self._taken = 0
        self._nics: Network | None = None

    def open(self, target: Target) -> None:
        """Begin; see Collector."""
        self._proc = Path(target.root + "/proc")
        self._interfaces = Path(target.root + "/sys/class/net")
        if not (self._proc / "stat").exists():
            raise Unavailable("/proc is not there")
        groups = {}
        for controller, place in target.groups:
            group = Path(target.root + place)
            if group.is_dir():
                groups[controller] = group
            else:
                self.blanks["control group", f"{group} is not there"] = 1
        self._what = _Step(groups, self._proc) if groups else _Node(self._proc)
        self.source = self._what.source
        self._nics = Network(target.root)
        self.facts["nics"] = self._nics.rates

    def read(self, now: int) -> list[Reading]:
        """Return one reading; see Collector. The first call only takes the counters."""
        counters: dict[str, float] = {}
        gauges: dict[str, float] = {}
        what = self._what
        for part in (what.cpu, what.throttled, what.memory, what.io, self._network, what.pressure):
            try:
                part(counters, gauges)
            except _MissingError as why:
                self.blank(part.__name__.strip("_"), str(why))
            except (OSError, ValueError, IndexError, KeyError) as error:
                self.blank(part.__name__.strip("_"), why_unread(error))
        if self._nics is not None and (busiest := self._nics.read(now)) is not None:
            gauges["nic"], gauges["nic_rate"] = busiest
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

    def _network(self, counters: dict[str, float], _: dict[str, float]) -> None:
        received = sent = 0.0
        for line in (self._proc / "net/dev").read_text().splitlines()[2:]:
            name, _colon, rest = line.partition(":")
            # Only devices: what goes through a bond, a VLAN or a bridge goes through one of them as well.
            if (self._interfaces / name.strip() / "device").exists():
                fields = rest.split()
                received, sent = received + float(fields[0]), sent + float(fields[8])
        counters["net_rx"], counters["net_tx"] = received, sent

    def close(self) -> None:
        """Nothing is held."""


class _Node:
    """The whole node's figures."""

    source = "the whole node"

    def __init__(self, proc: Path) -> None:
        self._proc = proc
        self._tick = 1 / os.sysconf("SC_CLK_TCK")

    def cpu(self, counters: dict[str, float], _: dict[str, float]) -> None:
        fields = (self._proc / "stat").read_text().split("\n", 1)[0].split()[1:]
        used = sum(map(int, fields[:3])) + sum(map(int, fields[5:8]))
        counters["cpu"] = used * self._tick

    def throttled(self, _counters: dict[str, float], _gauges: dict[str, float]) -> None:
        """A node has no quota."""

    def memory(self, _: dict[str, float], gauges: dict[str, float]) -> None:
        info = {line.split(":")[0]: float(line.split()[1]) * 1024 for line in self._lines("meminfo")}
        gauges["memory"] = info["MemTotal"] - info["MemFree"]
        gauges["memory_anon"] = info["AnonPages"]

    def io(self, counters: dict[str, float], _: dict[str, float]) -> None:
        disks = [line.split() for line in self._lines("diskstats")]
        # Whole disks only: what goes through a partition or a mapping is counted below it as well.
        whole = [d for d in disks if not d[2].startswith(("loop", "ram", "dm-", "zram")) and not _is_part(d[2])]
        counters["read"] = sum(float(d[5]) for d in whole) * 512
        counters["write"] = sum(float(d[9]) for d in whole) * 512

    def pressure(self, counters: dict[str, float], _: dict[str, float]) -> None:
        for name in ("cpu", "memory", "io"):
            counters[f"{name}_pressure"] = _pressure(self._proc / "pressure" / name)

    def _lines(self, name: str) -> list[str]:
        return (self._proc / name).read_text().splitlines()


class _Step:
    """The step's figures. `groups` are its directories by controller of version 1; '' is that of version 2."""

    def __init__(self, groups: Mapping[str, Path], proc: Path) -> None:
        self._groups = groups
        self._cpu = self._find("", "cpu.stat") or self._find("cpuacct", "cpuacct.usage")
        self._quota = self._find("cpu", "cpu.stat")
        self._memory = self._find("", "memory.current") or self._find("memory", "memory.usage_in_bytes")
        self._io = self._find("", "io.stat")
        self._processes: _Processes | None = None
        by = "2" if "" in groups else "1"
        if "" in groups and len(groups) > 1:
            by = "1 and 2"
        self.source = f"the step, by control groups of version {by}"
        if self._cpu is None:
            # Slurm's freezer has all that it tracks; the others only have what they limit.
            place = groups.get("freezer") or next(iter(groups.values()))
            self._processes = _Processes(place, proc)
            self.source += ", and its processes' processor time"

    def _find(self, controller: str, name: str) -> Path | None:
        group = self._groups.get(controller)
        return group / name if group is not None and (group / name).exists() else None

    def cpu(self, counters: dict[str, float], _: dict[str, float]) -> None:
        if self._processes is not None:
            counters["cpu"] = self._processes.used()
        elif self._cpu is not None and self._cpu.name == "cpu.stat":
            counters["cpu"] = _pairs(self._cpu)["usage_usec"] / 1e6
        elif self._cpu is not None:
            counters["cpu"] = float(self._cpu.read_text()) / 1e9

    def throttled(self, counters: dict[str, float], _: dict[str, float]) -> None:
        # The file of version 2 is there without its controller, too, and then says nothing of quotas.
        two = _pairs(self._cpu) if self._cpu is not None and self._cpu.name == "cpu.stat" else {}
        if "throttled_usec" in two:
            counters["cpu_throttled"] = two["throttled_usec"] / 1e6
        elif self._quota is not None:
            counters["cpu_throttled"] = _pairs(self._quota)["throttled_time"] / 1e9
        else:
            raise _MissingError("no control group of the step has the controller cpu")

    def memory(self, _: dict[str, float], gauges: dict[str, float]) -> None:
        if self._memory is None:
            raise _MissingError("no control group of the step has the controller memory")
        gauges["memory"] = float(self._memory.read_text())
        stat = _pairs(self._memory.with_name("memory.stat"))
        # Of version 1, "rss" is the group's own; "total_rss" has that of the groups of its tasks, too.
        gauges["memory_anon"] = stat["anon"] if self._memory.name == "memory.current" else stat["total_rss"]

    def io(self, counters: dict[str, float], _: dict[str, float]) -> None:
        if self._io is not None:
            words = [word.partition("=") for word in self._io.read_text().split()]
            counters["read"] = sum(float(value) for name, _, value in words if name == "rbytes")
            counters["write"] = sum(float(value) for name, _, value in words if name == "wbytes")
        elif "blkio" in self._groups:
            counters["read"] = _throttle_reads(self._groups["blkio"])
            raise _MissingError(_NO_WRITES)
        else:
            raise _MissingError("no control group of the step has the controller io or blkio")

    def pressure(self, counters: dict[str, float], _: dict[str, float]) -> None:
        if "" not in self._groups:
            raise _MissingError("only control groups of version 2 tell the pressure on a step")
        for name in ("cpu", "memory", "io"):
            counters[f"{name}_pressure"] = _pressure(self._groups[""] / f"{name}.pressure")


@dataclass(frozen=True)
class _Times:
    """A process's parent, and the seconds of it and of the children that it has waited for."""

    parent: int
    own: float
    children: float


class _Processes:
    """The processor time of the processes in a group and in those below it.

    What a process used between the last look and its end comes from whoever waited for it; where nobody in the group
    did, that part of a period is missing from the sum, which so may be a little low and is never too high.
    """

    def __init__(self, group: Path, proc: Path) -> None:
        self._group = group
        self._proc = proc
        self._tick = 1 / os.sysconf("SC_CLK_TCK")
        self._last: dict[tuple[int, int], _Times] | None = None
        self._used = 0.0

    def used(self) -> float:
        """Return the seconds since the first call. Raises OSError; _MissingError: /proc does not show the processes."""
        now: dict[tuple[int, int], _Times] = {}
        unseen = set()
        pids = self._pids()
        if len(pids) > _PROCESSES_MAX:
            raise _MissingError(f"the step has more than {_PROCESSES_MAX} processes and no control group of cpuacct")
        for pid in pids:
            try:
                # The name in it may have any byte but is followed by the last parenthesis.
                fields = (self._proc / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()
            except OSError:
                unseen.add(pid)
                continue
            user, system, children_user, children_system = (int(field) * self._tick for field in fields[11:15])
            now[pid, int(fields[19])] = _Times(int(fields[1]), user + system, children_user + children_system)
        if unseen and unseen & self._pids():
            raise _MissingError("/proc hides the step's processes (hidepid), and it has no control group of cpuacct")
        if self._last is not None:
            self._used += _gain(self._last, now)
        self._last = now
        return self._used

    def _pids(self) -> set[int]:
        found: set[int] = set()
        for directory, _, _ in os.walk(self._group):
            try:
                found |= set(map(int, Path(directory, "cgroup.procs").read_text().split()))
            except FileNotFoundError:
                continue  # a task's group, which has ended
            except OSError:
                if directory == str(self._group):
                    raise
        return found


def _gain(last: Mapping[tuple[int, int], _Times], now: Mapping[tuple[int, int], _Times]) -> float:
    """Return the seconds that the processes used between two looks at them."""
    alive = {pid for pid, _ in now}
    parents = {pid: times.parent for (pid, _), times in last.items()}
    # What was counted of those who have ended is in the sum of who waited for them, now.
    counted: defaultdict[int, float] = defaultdict(float)
    for (pid, start), times in last.items():
        if (pid, start) in now:
            continue
        parent, seen = times.parent, set()
        while parent not in alive and parent in parents and parent not in seen:
            seen.add(parent)
            parent = parents[parent]
        counted[parent] += times.own + times.children
    gain = 0.0
    for (pid, start), times in now.items():
        before = last.get((pid, start), _Times(0, 0.0, 0.0))
        gain += max(0.0, times.own - before.own) + max(0.0, times.children - before.children - counted[pid])
    return gain


def _throttle_reads(group: Path) -> float:
    """Return the bytes read by a group of blkio and those below it."""
    recursive = group / "blkio.throttle.io_service_bytes_recursive"
    paths = [recursive] if recursive.exists() else sorted(group.rglob("blkio.throttle.io_service_bytes"))
    if not paths:
        raise _MissingError("the control group of blkio does not tell what was read")
    lines = [line.split() for path in paths for line in path.read_text().splitlines()]
    return sum(float(words[2]) for words in lines if len(words) == 3 and words[1] == "Read")


def _pressure(path: Path) -> float:
    some = path.read_text().split("\n", 1)[0]
    return float(some.rpartition("total=")[2]) / 1e6


def _pairs(path: Path) -> dict[str, float]:
    lines = (line.split() for line in path.read_text().splitlines())
    return {words[0]: float(words[1]) for words in lines if len(words) == 2}


def _is_part(name: str) -> bool:
    if name.startswith(("nvme", "mmcblk")):
        return "p" in name.rpartition("n" if name.startswith("nvme") else "k")[2]
    return name[-1:].isdigit() and not name.startswith(("md", "sr"))
