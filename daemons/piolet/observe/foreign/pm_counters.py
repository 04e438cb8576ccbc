"""Cray's pm_counters as the node has them: files of lines "VALUE UNIT MICROSECONDS us", a file for each counter.

That is what comes of `cat /sys/cray/pm_counters/power >>x1000c0s0b0n0/power` in a loop. Files have the counters' names:
power, energy, cpu_power, cpu_energy, accel0_power, accel0_energy (HPE's docs-csm, "User Access to Compute Node Power
Data", read in November 2026); the directory has the node's. A counter that was read twice before it was taken
anew has the same time and value, and counts once.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from piolet.base.errors import ObserveError
from piolet.observe.foreign import omnistat
from piolet.observe.foreign.common import EARLIEST, LATEST, Asked, Step, content_of, job_of
from piolet.observe.foreign.exposition import Scrapes, Series
from piolet.observe.foreign.scrapes import Key

NAME, TEXT = (
    "pm_counters",
    "Cray's pm_counters: directories of nodes with files power, accel0_power, cpu_power and so on",
)

_NAME = re.compile(r"(?:accel(?P<accel>[0-9]{1,3})_|(?P<part>cpu)_)?(?P<what>power|energy)(?:\.(?:txt|log|gz))*")
_LINE = re.compile(r"([0-9]{1,18}) (W|J) ([0-9]{15,17}) us[ \t]*")
_FILES_MOST, _LINES_MOST = 100_000, 50_000_000
_UNITS = {"power": "W", "energy": "J"}


def is_one(head: str) -> bool:
    """Return whether a file that begins so is of pm_counters."""
    return _LINE.fullmatch(head.split("\n", 1)[0]) is not None


def read(paths: Sequence[Path], asked: Asked) -> list[Step]:
    """Return the step whose nodes were read. Raises ObserveError: a file is damaged, or has another unit or no time."""
    found: dict[Key, dict[str, tuple[str, Series]]] = {}
    energies: dict[tuple[str, str], Series] = {}
    lines = 0
    for path in list(paths)[:_FILES_MOST]:
        name = _NAME.fullmatch(path.name)
        if name is None:
            continue
        node = asked.node or path.absolute().parent.name
        series = _series(path, _UNITS[name["what"]])
        lines += len(series.times)
        if lines > _LINES_MOST:
            raise ObserveError(f"{path}: more than {_LINES_MOST} lines are not read at once")
        if name["what"] == "energy" and name["accel"] is None:
            energies[node, "cpu_power" if name["part"] else "node_power"] = series
            continue
        accelerator = "" if name["accel"] is None else str(int(name["accel"]))
        part = "accel_" if accelerator else f"{name['part']}_" if name["part"] else ""
        unit = "watts" if name["what"] == "power" else "joules"
        metric = f"omnistat_vendor_{part}{name['what']}_{unit}"
        own = found.setdefault((node, accelerator), {})
        quantity = omnistat.METRICS[metric].quantity
        if quantity in own:
            raise ObserveError(f"{path}: {path.name} of {node} is there twice", "a directory has the files of one node")
        own[quantity] = (metric, series)
    if not found:
        raise ObserveError(f"{paths[0]} has no file of pm_counters", "files are called power, cpu_power, accel0_power")
    return [omnistat.step_of(found, energies, Scrapes(), asked, (job_of("", asked, paths[0]), {}))]


def _series(path: Path, unit: str) -> Series:
    try:
        text = content_of(path).decode("ascii")
    except UnicodeDecodeError:
        raise ObserveError(f"{path} is no text") from None
    if not text.endswith("\n"):
        raise ObserveError(f"{path} is cut off: its last line has no end", "remove that line")
    series = Series()
    for number, line in enumerate(text.split("\n")[:-1], 1):
        match = _LINE.fullmatch(line)
        if match is None:
            raise ObserveError(f"{path}: line {number} is not 'VALUE UNIT MICROSECONDS us'")
        when = int(match[3]) * 1000
        if match[2] != unit or not EARLIEST <= when <= LATEST:
            what = "in another unit than " + unit if match[2] != unit else "not between 2000 and 2100"
            raise ObserveError(f"{path}: line {number} is {what}")
        series.times.append(when)
        series.values.append(float(match[1]))
    return series
