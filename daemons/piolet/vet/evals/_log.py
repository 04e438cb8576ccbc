"""The kernel's log as pioletd hands it over: what it says of devices, how old it is, and what a reset has ended.

Lines are those of `dmesg`: '[seconds since boot] text'. A line without a time counts as new. The log begins with the
boot, so nothing in it is older. Runs under Python 3.8.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

from piolet.api import Context
from piolet.vet.evals import _severities
from piolet.vet.evals._severities import Severity

_STAMP = re.compile(r"^\[\s*(\d+\.\d+)\] ")
_XID = re.compile(r"NVRM: Xid \(PCI:([0-9a-fA-F:.]+)\): (\d+)(.*)")
_SXID = re.compile(r"nvidia-nvswitch\d+: SXid \(PCI:([0-9a-fA-F:.]+)\): (\d+)(.*)")
_RECOVERY = re.compile(r" to (0x[0-9a-fA-F]+)")
_FATAL = re.compile(r"\b(non-?)?fatal\b", re.IGNORECASE)
_LOADED = re.compile(r"NVRM: loading NVIDIA ")
"""The driver is loaded: what it said before is of GPUs as they were before they were initialised anew."""


@dataclass(frozen=True)
class Event:
    """One line that means something: of which device (a PCI address 'dddd:bb:dd', or '' for the node), and when.

    age in seconds, None: not told.
    """

    row: Severity
    device: str
    code: str
    text: str
    age: float | None


def lines(context: Context) -> list[str] | None:
    """Return the lines that pioletd gave, or None: the log cannot be read, which is not the same as clean."""
    log = context.facts.get("kernel_log")
    return [line for line in log if isinstance(line, str)] if isinstance(log, (list, tuple)) else None


def gpu_events(log: list[str], now: float | None = None) -> list[Event]:
    """Return what the driver of GPUs and NVSwitches said since the last reset of each, oldest first."""
    found: list[Event] = []
    for line in log:
        if _LOADED.search(line):
            found = []
        said = _STAMP.sub("", line)
        match = _XID.match(said)
        if match:
            device, code, rest = address(match[1]), match[2], match[3]
            row = _severities.find("xid", code, _qualifier(code, rest))
            if row.code == "154:0x0":  # the GPU was reset, or recovered by itself
                found = [event for event in found if event.device != device]
            found.append(Event(row, device, f"XID {code}", line, _age(line, now)))
        match = _SXID.match(said)
        if match:
            row = _severities.find("sxid", "any", _fatal(match[3]))
            found.append(Event(row, "", f"SXid {match[2]} of the NVSwitch {address(match[1])}", line, _age(line, now)))
    return [event for event in found if event.row.severity != _severities.IGNORE]


def node_events(log: list[str], now: float | None = None) -> list[Event]:
    """Return what the kernel said of hardware that is no GPU's own error, oldest first."""
    rows = [(re.compile(code), row) for code, row in _severities.TABLES["log"].items()]
    found: list[Event] = []
    for line in log:
        if _LOADED.search(line):
            found = [event for event in found if not event.row.code.startswith("NVRM")]
        row = next((row for pattern, row in rows if pattern.search(line)), None)
        if row is not None and row.severity != _severities.IGNORE:
            found.append(Event(row, "", "", _STAMP.sub("", line), _age(line, now)))
    return found


def loaded_ago(log: list[str], now: float | None = None) -> float | None:
    """Return the seconds since the GPUs' driver was loaded, as the log says; None: it does not."""
    ages = [_age(line, now) for line in log if _LOADED.search(line)]
    return ages[-1] if ages else None


def address(text: str) -> str:
    """Return a PCI address as 'dddd:bb:dd': domains have 4 or 8 digits, and the function is left out."""
    return text.lower().partition(".")[0][-10:]


def ago(age: float | None) -> str:
    """Return how long ago that was, as people say it."""
    if age is None:
        return "at an unknown time"
    for unit, seconds in (("days", 86400), ("hours", 3600), ("min", 60)):
        if age >= 2 * seconds:
            return f"{age / seconds:.0f} {unit} ago"
    return f"{age:.0f} s ago"


def _qualifier(code: str, rest: str) -> str:
    if code == "154":
        match = _RECOVERY.search(rest)
        return f"0x{int(match[1], 16):x}" if match else ""
    return _fatal(rest)


def _fatal(rest: str) -> str:
    match = _FATAL.search(rest)
    return ("nonfatal" if match[1] else "fatal") if match else ""


def _age(line: str, now: float | None) -> float | None:
    match = _STAMP.match(line)
    if match is None:
        return None
    # The kernel's own clock of the log counts from the boot, as this one does; they differ by seconds at most.
    return max(0.0, (time.clock_gettime(time.CLOCK_MONOTONIC) if now is None else now) - float(match[1]))
