"""What drivers of devices say in the kernel's log, without a word of whose processes they say it.

An ordinary user may not read the log where `dmesg_restrict` is set, as it names other users' processes. A vetting is
handed what concerns the node: lines of drivers, each cut off where it begins to speak of a process. It is cut, and not
mended, since a process chooses its own name, commas and all. Lines that programs wrote to the log are not the kernel's.
"""

from __future__ import annotations

import os
import re

_LINES_MAX = 1000
_KERNEL = 0  # the facility of the kernel's own lines; a program that writes to /dev/kmsg gets another
_DRIVER = re.compile(
    r"NVRM: Xid |nvidia-nvswitch\d*: |mlx[45]_core[ :]|cxi_\w+[ :]|hfi1[ :_]|amdgpu[ :]|EDAC |[\w-]+ [0-9a-f:.]+: AER: "
)
_PROCESS = re.compile(
    r"\b(?:pid|tgid|tid|uid|comm|name|task|proc|process|thread|user|cmd|cmdline|exe)\b", re.IGNORECASE
)


def read() -> list[str] | None:
    """Return the lines, the latest at the end. None: the log cannot be read, which is not the same as clean."""
    lines: list[str] = []
    try:
        log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        while True:
            try:
                line = of_device(os.read(log, 8192))
            except BrokenPipeError:
                continue  # lines were overwritten while we read
            except OSError:
                break
            if line is not None:
                lines.append(line)
    finally:
        os.close(log)
    return lines[-_LINES_MAX:]


def of_device(entry: bytes) -> str | None:
    """Return the line in an entry of /dev/kmsg as anybody may see it, or None: it is not one of a device."""
    prefix, _, text = entry.decode("utf-8", "replace").partition(";")
    priority = prefix.partition(",")[0]
    line = text.partition("\n")[0]
    if not priority.isdigit() or int(priority) >> 3 != _KERNEL or not _DRIVER.match(line):
        return None
    process = _PROCESS.search(line)
    return line if process is None else line[: process.start()].rstrip(" ,(:[") + " ..."
