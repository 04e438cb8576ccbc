"""Lines of the kernel's log as events: which kind, how bad by the tables of severities, of which device.

What a process could have written is in no event: lines of drivers come as `kernellog` lets anybody see them, of all
others only the numbers and names are taken that the kernel puts there. Pure functions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from piolet.events.envelope import FATAL, INFO, WARN
from piolet.node.root import kernellog
from piolet.vet.evals import _log, _severities
from piolet.vet.evals._log import address as address

TEXT_MAX = 500
_SEVERITY = {_severities.FAIL: FATAL, _severities.WARN: WARN, _severities.IGNORE: INFO}
_FELL_OFF = "79"
# The name of a process, which it chooses, has 15 characters: none can have all of this.
_PLACE = re.compile(r"\(GPC (\d+), TPC (\d+), SM \d+\)")
_PCI = re.compile(r"\b((?:[0-9a-f]{4}:)?[0-9a-f]{2}:[0-9a-f]{2}\.[0-7])\b")
_BUS = re.compile(r"NVRM: (?:The NVIDIA GPU|GPU) ([0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2})")
_EDAC = re.compile(r"EDAC \w+: (\d+) (CE|UE) ")
_OTHERS = (
    (re.compile(r"INFO: task .{1,40}:\d+ blocked for more than (\d+) seconds\.$"), "fs.blocked"),
    (re.compile(r"nfs: server ([\w.:\[\]-]{1,200}) not responding"), "fs.blocked"),
    (re.compile(r"LustreError: [\d/-]+: ([\w-]{1,60})-(?:MDT|OST)[0-9a-f]{4}-\w+-\w+: This client was evicted by "),
     "fs.evicted"),
    (re.compile(r"LustreError: [\d/-]+: (MG[CS])[\w.@-]{1,60}: This client was evicted by "), "fs.evicted"),
)  # fmt: skip


_OOM = re.compile(r"oom-kill:constraint=(CONSTRAINT_[A-Z_]+),")
# The name of who was ended stands before its number and its uid, and a group's name may be a user's: where a line has
# twice what names the group, one of them is no word of the kernel's.
_OOM_GROUP = re.compile(r",task_memcg=(/[^,]*),task=")
_OOM_UID = re.compile(r",pid=\d{1,10},uid=(\d{1,10})$")
# Where slurmd makes them, of version 2 and 1. What is below a user's own slice may be called so as well.
_STEP = re.compile(r"/(?:[\w.-]*slurmstepd\.scope|uid_\d{1,10})/job_(\d{1,10})/step_([a-z0-9+]{1,20})(?:/|$)")
_USERS_OWN = "/user.slice/"
_PID = re.compile(r"NVRM: Xid \(PCI:[0-9a-fA-F:.]+\): \d+, pid=['\"]?(\d{1,10})\b")


@dataclass(frozen=True)
class Line:
    """What a line means.

    key        what lines have alike that are one burst
    job, step  of who ran out of memory, by the name of its control group; uid: whose process that was
    pid        the process of which a line speaks that is of a program
    """

    kind: str
    severity: str = ""
    device: str = ""
    subject: str = ""
    body: Mapping[str, Any] = field(default_factory=dict)
    key: str = ""
    job: int | None = None
    step: str = ""
    uid: int | None = None
    pid: int | None = None


def events_of(entry: bytes) -> list[Line]:
    """Return what an entry of /dev/kmsg means; nothing where it means none, or is not the kernel's."""
    line = kernellog.of_device(entry)
    if line is not None:
        return _of_device(line, entry)
    priority = entry.partition(b",")[0]
    if not priority.isdigit() or int(priority) >> 3:
        return []
    text = text_of(entry)
    match = _OOM.match(text)
    if match is not None and ",task_memcg=/" in text:
        return [_oom("cgroup" if match[1] == "CONSTRAINT_MEMCG" else "node", text)]
    for pattern, kind in _OTHERS:
        match = pattern.match(text)
        if match is not None:
            return [_other(kind, match[1])]
    return []


def text_of(entry: bytes) -> str:
    """Return the line in an entry of /dev/kmsg, whole."""
    return entry.decode("utf-8", "replace").partition(";")[2].partition("\n")[0]


def _oom(scope: str, text: str) -> Line:
    group, by = _OOM_GROUP.search(text), _OOM_UID.search(text)
    path = group[1] if group is not None and text.count("task_memcg=") == 1 else ""
    step = None if path.startswith(_USERS_OWN) else _STEP.search(path)
    job, name = (int(step[1]), step[2]) if step is not None and 0 < int(step[1]) < 2**32 else (None, "")
    uid = int(by[1]) if by is not None and int(by[1]) < 2**32 - 1 else None
    return Line("kernel.oom", body={"scope": scope}, key=f"{scope} {job}.{name} {uid}", job=job, step=name, uid=uid)


def _other(kind: str, what: str) -> Line:
    if kind == "fs.blocked" and what.isdigit():
        return Line(kind, body={"processes": 1, "seconds": int(what)})
    text = f"This client was evicted from {what}" if kind == "fs.evicted" else f"server {what} does not respond"
    return Line(kind, subject=f"fs:{what}", body={"text": text}, key=what)


def _of_device(line: str, entry: bytes) -> list[Line]:
    for event in _log.gpu_events([line]) or _ignored(line):
        number = re.search(r"\d+", event.code)
        text = line[:TEXT_MAX]
        if number is None:
            continue
        if event.code.startswith("SXid"):
            body = {"sxid": int(number[0]), "text": text}
            return [Line("nvswitch.sxid", _SEVERITY[event.row.severity], body=body, key=event.code)]
        place = _PLACE.findall(entry.decode("utf-8", "replace").partition("\n")[0])
        more = {"gpc": int(place[-1][0]), "tpc": int(place[-1][1])} if place else {}
        body = {"xid": int(number[0]), "pci": event.device, "text": text, **more}
        key = f"{number[0]} {event.device} {more}"
        # What is not of a program is of the GPU, whoever happened to use it.
        pid = _PID.match(text_of(entry)) if event.row.severity == _severities.IGNORE else None
        found = [
            Line("gpu.xid", _SEVERITY[event.row.severity], event.device, body=body, key=key,
                 pid=int(pid[1]) if pid is not None else None)
        ]  # fmt: skip
        if number[0] == _FELL_OFF:
            found.append(Line("gpu.lost", FATAL, event.device, body={"pci": event.device}, key=event.device))
        return found
    return _of_node(line)


def _ignored(line: str) -> list[_log.Event]:
    """Return an event that the tables say to ignore, which is still a word of the driver's."""
    for pattern, kind in ((_log._XID, "xid"), (_log._SXID, "sxid")):
        match = pattern.match(line)
        if match is not None:
            row = _severities.find(kind, match[2])
            name = f"{'XID' if kind == 'xid' else 'SXid'} {match[2]}"
            return [_log.Event(row, _log.address(match[1]), name, line, None)]
    return []


def _of_node(line: str) -> list[Line]:
    rows = ((re.search(code, line), row) for code, row in _severities.TABLES["log"].items())
    row = next((row for match, row in rows if match is not None), None)
    bus, pci = _BUS.match(line), _PCI.search(line)
    if bus is not None and "fallen off the bus" in line:
        device = _log.address(bus[1])
        return [Line("gpu.lost", FATAL, device, body={"pci": device}, key=device)]
    severity = _SEVERITY[row.severity] if row is not None else ""
    device = _log.address(pci[1]) if pci is not None else ""
    text = line[:TEXT_MAX]
    if "AER: " in line or "PCIe Bus Error: " in line:
        # A sentence of AER is several lines; the one that says how bad it is counts.
        if row is None:
            return []
        key = f"{device} {severity}"
        return [Line("pcie.aer", severity, body={"pci": pci[1] if pci else "", "text": text}, key=key)]
    edac = _EDAC.match(line)
    if edac is not None:
        counts = {"corrected" if edac[2] == "CE" else "uncorrected": int(edac[1])}
        return [Line("memory.ecc", severity, body={**counts, "text": text}, key=f"{edac[2]} {text.partition(':')[0]}")]
    if row is None:
        return []
    memory = line.startswith(("Memory failure: ", "mce: ", "{")) or "[Hardware Error]" in line
    kind = "memory.ecc" if memory else "device.error"
    body = {"text": text} if memory or pci is None else {"text": text, "pci": pci[1]}
    return [Line(kind, severity, device, body=body, key=f"{row.code} {device}")]
