"""What drivers of devices say in the kernel's log, without a word of whose processes they say it.

An ordinary user may not read the log where `dmesg_restrict` is set, as it names other users' processes. A vetting is
handed what concerns the node: lines of drivers, each cut off where it begins to speak of a process. It is cut, and not
mended, since a process chooses its own name, commas and all. Lines that programs wrote to the log are not the kernel's.

The kernel begins some lines with a process's name ("x[7]: segfault ... in y", "x invoked oom-killer"), and ends some
with a file's: a name has up to 15 characters, whatever its process likes, and a file's many more. So what a driver's
line begins with is longer than a name can be, in words that nothing of the kernel's puts behind a name (decision 176).
"""

from __future__ import annotations

import os
import re
from collections import defaultdict, deque

_LINES_MAX = 200
"""Of each driver, the latest: what one of them repeats for hours pushes out no word of another."""
_KERNEL = 0  # the facility of the kernel's own lines; a program that writes to /dev/kmsg gets another
_PCI = r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]"
# No process can write a part of it: its name comes after a word of _PROCESS, if at all. "EDAC MC0: 1 UE " is as long as
# a name: there the word behind it is the kernel's, and so is the place in memory, which stands where no name does.
_DRIVER = re.compile(
    r"(?P<driver>NVRM: Xid \(PCI:[0-9a-fA-F:.]+\): \d|NVRM: loading NVIDIA |NVRM: The NVIDIA GPU "
    r"|NVRM: GPU [0-9a-fA-F:.]+: RmInitAdapter failed|nvidia-nvswitch\d+: SXid \(PCI:[0-9a-fA-F:.]+\): \d"
    rf"|(?:mlx[45]_core|cxi_\w+|hfi1|amdgpu) {_PCI}[ :]|[\w-]+ {_PCI}: (?:AER: |PCIe Bus Error: )"
    r"|EDAC MC\d+: \d+ [CU]E (?!invoked )[A-Za-z](?=.* page:0x[0-9a-f]+ offset:0x[0-9a-f]+ grain:\d)"
    r"|mce: (?:\[Hardware Error\]: |Uncorrected hardware memory error|CPU\d+: (?:Core|Package) temperature )"
    r"|(?:\{\d+\})?\[Hardware Error\]: |CPU\d+: (?:Core|Package) temperature "
    r"|Memory failure: 0x[0-9a-f]+: recovery action for )"
)
# This one's lines begin with fewer characters than a name has: there the kernel says apart from the line whose it is.
_NVME = re.compile(r"(?P<driver>nvme nvme\d+: )")
_OF_NVME = b"\n SUBSYSTEM=nvme\n"
# The driver of these adapters begins each line with a function, a line and a number of a process.
_NUMBERED = re.compile(r"^(mlx[45]_core [0-9a-f:.]+ (?:\w+: )?\w+:\d+:)\(pid \d+\)")
_PROCESS = re.compile(
    r"\b(?:pid|tgid|tid|uid|comm|name|task|proc|process|thread|user|cmd|cmdline|exe)\b", re.IGNORECASE
)


def read() -> list[str] | None:
    """Return the lines in order, '[seconds since boot] text'. None: the log cannot be read, which is not clean."""
    found: dict[str, deque[tuple[int, str]]] = defaultdict(lambda: deque(maxlen=_LINES_MAX))
    number = entries = 0
    try:
        log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        while True:
            try:
                entry = os.read(log, 8192)
                entries += 1
            except BrokenPipeError:
                continue  # lines were overwritten while we read
            except OSError:
                break
            line = of_device(entry)
            if line is not None:
                number += 1
                found[driver_of(line)].append((number, stamp_of(entry) + line))
    finally:
        os.close(log)
    if entries == 0:  # no kernel has nothing to say: it was emptied, or is somebody's imitation
        return None
    return [line for _, line in sorted(one for lines in found.values() for one in lines)]


def driver_of(line: str) -> str:
    """Return who wrote a line, without the number of the device."""
    match = _DRIVER.match(line) or _NVME.match(line)
    return re.sub(r"[0-9a-f]*[\d:.{}]+[0-9a-f]*", "", match["driver"]).strip() if match else ""


def stamp_of(entry: bytes) -> str:
    """Return when an entry of /dev/kmsg was written, as dmesg shows it, or '': it does not say."""
    fields = entry.partition(b";")[0].split(b",")
    if len(fields) < 3 or not fields[2].isdigit():
        return ""
    return f"[{int(fields[2]) / 1e6:12.6f}] "


def of_device(entry: bytes) -> str | None:
    """Return the line in an entry of /dev/kmsg as anybody may see it, or None: it is not one of a device."""
    prefix, _, text = entry.decode("utf-8", "replace").partition(";")
    priority = prefix.partition(",")[0]
    line = text.partition("\n")[0]
    if not priority.isdigit() or int(priority) >> 3 != _KERNEL or not _is_of_driver(line, entry):
        return None
    line = _NUMBERED.sub(r"\1", line)
    process = _PROCESS.search(line)
    return line if process is None else line[: process.start()].rstrip(" ,(:[") + " ..."


def _is_of_driver(line: str, entry: bytes) -> bool:
    return _DRIVER.match(line) is not None or (_NVME.match(line) is not None and _OF_NVME in entry)
