"""A program in the place of skopeo, mksquashfs or zstd that reaches for what it should not, and reports what it got.

A test puts the targets into its copy of this file. The report is a file `report` in the scratch directory, which even a
caged program may write.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

TARGETS: dict[str, Any] = json.loads("{}")
LIBC = ctypes.CDLL(None, use_errno=True)
_PTRACE_SEIZE, _PTRACE_DETACH, _RLIMIT_CORE = 0x4206, 17, 4


def scratch() -> str:
    """Return the folder that the program was given to write in."""
    if "--tmpdir" in sys.argv:
        return sys.argv[sys.argv.index("--tmpdir") + 1]
    if "-noappend" in sys.argv:
        return os.path.dirname(sys.argv[2])
    if "--scratch" in sys.argv:
        return sys.argv[2]
    return os.path.dirname(os.path.dirname(os.path.dirname(os.readlink("/proc/self/fd/0"))))


def attempts(ours: str) -> Iterator[tuple[str, Callable[..., Any], tuple[Any, ...]]]:
    """Yield each attempt: its name, what returns if it went well, and what that is given."""
    for path in TARGETS["files"]:
        yield f"read {path}", _open, (path,)
        yield f"append to {path}", _open, (path, os.O_WRONLY | os.O_APPEND)
        yield f"truncate {path}", _truncate, (path,)
        yield f"chmod {path}", _chmod, (path,)
        yield f"set the times of {path}", _set_times, (path,)
        yield f"set an attribute of {path}", os.setxattr, (path, "user.piolet", b"x")
        yield f"link {path}", os.link, (path, f"{ours}/link-{time.monotonic_ns()}")
        yield f"rename {path}", os.rename, (path, path)
        yield f"read {path} by a link", _through_a_link, (path, ours)
        yield f"read {path} from above", _open, (f"{ours}/../../../../../../../..{path}",)
    for folder in TARGETS["folders"]:
        yield f"list {folder}", _list, (folder, ours)
        yield f"write in {folder}", _write, (folder,)
        yield f"link in {folder}", _symlink, (folder,)
        yield f"chmod {folder}", _chmod, (folder,)
    for pid in (TARGETS["service"], os.getppid()):
        for name in ("mem", "environ", "maps", "auxv"):
            yield f"read {name} of {pid}", _open, (f"/proc/{pid}/{name}",)
        for name in ("fd", "root", "cwd"):
            yield f"list {name} of {pid}", os.listdir, (f"/proc/{pid}/{name}/",)
        yield f"trace {pid}", _trace, (pid,)
        yield f"signal {pid}", os.kill, (pid, 0)
        yield f"limit {pid}", _limit, (pid,)
        yield f"read the memory of {pid}", _memory, (pid,)
    yield "the service's socket", _connect, (TARGETS["socket"], socket.SOCK_SEQPACKET)
    yield "an abstract socket", _connect, ("\0" + TARGETS["abstract"], socket.SOCK_STREAM)
    yield "a new session", os.setsid, ()


def _truncate(path: str) -> None:
    os.truncate(path, os.stat(path).st_size)


def _chmod(path: str) -> None:
    os.chmod(path, os.stat(path).st_mode & 0o7777)


def _set_times(path: str) -> None:
    seen = os.stat(path)
    os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns))


def _through_a_link(path: str, ours: str) -> None:
    link = f"{ours}/sym-{time.monotonic_ns()}"
    os.symlink(path, link)
    _open(link)


def _list(folder: str, ours: str) -> None:
    """Look for names that are not just the way to the program's own place."""
    way = {Path(os.path.relpath(ours, folder)).parts[0]}
    if not set(os.listdir(folder)) - way:
        raise OSError(0, "nothing is in it")


def _write(folder: str) -> None:
    path = f"{folder}/hostile-{time.monotonic_ns()}"
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o644))
    os.unlink(path)


def _symlink(folder: str) -> None:
    path = f"{folder}/hostile-{time.monotonic_ns()}"
    os.symlink("/etc/passwd", path)
    os.unlink(path)


def _open(path: str, flags: int = os.O_RDONLY) -> None:
    os.close(os.open(path, flags))


def _trace(pid: int) -> None:
    if LIBC.ptrace(_PTRACE_SEIZE, pid, None, None):
        raise OSError(ctypes.get_errno(), "ptrace")
    LIBC.ptrace(_PTRACE_DETACH, pid, None, None)


def _limit(pid: int) -> None:
    if LIBC.prlimit(pid, _RLIMIT_CORE, None, ctypes.create_string_buffer(16)):
        raise OSError(ctypes.get_errno(), "prlimit")


def _memory(pid: int) -> None:
    """Read nothing at all: the kernel looks at the rights first."""
    block = ctypes.create_string_buffer(8)
    piece = struct.pack("@PN", ctypes.addressof(block), 8)
    if LIBC.process_vm_readv(pid, piece, 1, piece, 1, 0) < 0 and ctypes.get_errno() != 14:
        raise OSError(ctypes.get_errno(), "process_vm_readv")


def _connect(address: str, kind: int) -> None:
    with socket.socket(socket.AF_UNIX, kind) as connection:
        connection.connect(address)


def main() -> None:
    """Try everything, report, and wait to be ended."""
    ours = scratch()
    reached, refused = [], {}
    for name, attempt, given in attempts(ours):
        try:
            attempt(*given)
        except (OSError, ValueError) as error:
            refused[name] = str(error)
        else:
            reached.append(name)
    # Where it lies is itself worth a look: a few folders, and what is open that nobody handed over.
    opened = {}
    with contextlib.suppress(OSError):
        for fd in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                opened[fd] = os.readlink(f"/proc/self/fd/{fd}")
    report = {"reached": reached, "refused": refused, "opened": opened, "uid": os.geteuid()}
    Path(ours, "report.new").write_text(json.dumps(report))
    os.rename(f"{ours}/report.new", f"{ours}/report")
    if "--scratch" not in sys.argv:
        time.sleep(60)


if __name__ == "__main__":
    main()
