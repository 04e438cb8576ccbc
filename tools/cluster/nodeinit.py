"""Become one machine of the cluster: own host name, own mounts, own /run; then exec its daemon.

Run as a file of its own by the system's python3, as root: `nodeinit.py JSON PROGRAM ARGUMENT…`, where JSON is
{"hostname", "hosts", "binds": [paths], "run_size", "cgroups": {controller: group}, "one_cpu", "ready_fd"}. It says
nothing on `ready_fd` and the exec closes it; what went wrong is written there. It changes nothing outside the
namespaces that it makes, but for entering the control groups.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import stat
import sys
from pathlib import Path
from typing import Any

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWCGROUP = 0x02000000
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE, MS_SHARED = 2, 4, 8, 4096, 16384, 1 << 18, 1 << 20
MNT_DETACH = 2

LIBC = "libc.so.6"
CGROUPS = "/sys/fs/cgroup"


class Kernel:
    """The four system calls that Python 3.11 has no name for; each raises OSError naming the call."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(LIBC, use_errno=True)

    def _check(self, result: int, what: str) -> None:
        if result != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"{what}: {os.strerror(number)}")

    def unshare(self, flags: int) -> None:
        self._check(self._libc.unshare(flags), "unshare")

    def mount(self, source: str, target: str, kind: str | None, flags: int, data: str = "") -> None:
        self._check(
            self._libc.mount(
                source.encode(),
                target.encode(),
                kind.encode() if kind else None,
                ctypes.c_ulong(flags),
                data.encode(),
            ),
            f"mount {source} at {target}",
        )

    def umount(self, target: str) -> None:
        self._check(self._libc.umount2(target.encode(), MNT_DETACH), f"umount {target}")


def resolver_configuration() -> tuple[Path, bytes] | None:
    """Return where resolv.conf really is and what it says, if the node's own /run is going to hide it."""
    real = Path("/etc/resolv.conf").resolve()
    if not real.is_relative_to("/run"):
        return None
    try:
        return real, real.read_bytes()
    except OSError:
        return None


def make_machine(spec: dict[str, Any], kernel: Kernel) -> None:
    """Enter new namespaces and set them up as `spec` says."""
    if spec["one_cpu"]:
        # Of two processors Linux 6.18 numbers namespaces independently, and refuses to keep one of a smaller number
        # than that of its own mounts in a file, which Slurm does with those of jobs: half of them failed.
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    resolver = resolver_configuration()
    kernel.unshare(CLONE_NEWNS | CLONE_NEWUTS)
    kernel.mount("none", "/", None, MS_REC | MS_PRIVATE)
    socket.sethostname(spec["hostname"])
    kernel.mount(spec["hosts"], "/etc/hosts", None, MS_BIND)
    _make_run(spec, kernel)
    _open_fuse(kernel)
    if resolver is not None:
        path, content = resolver
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    if spec["cgroups"]:
        _enter_cgroups(spec["cgroups"], kernel)
    # Container runtimes refuse version 1 and 2 side by side; with both, the node gets version 2 alone.
    elif not Path(CGROUPS, "cgroup.procs").exists():
        kernel.umount(CGROUPS)
        kernel.mount("cgroup2", CGROUPS, "cgroup2", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    # As an init system leaves it: what is mounted on the node later reaches those who have mounts of their own.
    kernel.mount("none", "/", None, MS_REC | MS_SHARED)


def _enter_cgroups(groups: dict[str, str], kernel: Kernel) -> None:
    """Make the cluster's groups of version 1 all that the node sees: two clusters may have nodes of one name."""
    for group in groups.values():
        Path(group, "cgroup.procs").write_text("0", "ascii")
    kernel.unshare(CLONE_NEWCGROUP)
    kernel.umount(CGROUPS)
    kernel.mount("tmpfs", CGROUPS, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=755,size=64k")
    for controller in groups:
        place = Path(CGROUPS, controller)
        place.mkdir()
        kernel.mount("cgroup", str(place), "cgroup", MS_NOSUID | MS_NODEV | MS_NOEXEC, controller)


def _make_run(spec: dict[str, Any], kernel: Kernel) -> None:
    # The shared directories are opened first: the new /run hides them, and a descriptor still leads there.
    shared = [(path, os.open(path, os.O_PATH | os.O_CLOEXEC)) for path in spec["binds"]]
    kernel.mount("tmpfs", "/run", "tmpfs", MS_NOSUID | MS_NODEV, f"mode=755,size={spec['run_size']}")
    for path, descriptor in shared:
        Path(path).mkdir(parents=True)
        kernel.mount(f"/proc/self/fd/{descriptor}", path, None, MS_BIND)
        os.close(descriptor)
    Path("/run/piolet").mkdir(mode=0o755)
    lock = Path("/run/lock")
    lock.mkdir()
    lock.chmod(0o1777)


def _open_fuse(kernel: Kernel) -> None:
    """Let everybody use /dev/fuse, as udev does; a machine without udev keeps it to root."""
    fuse = Path("/dev/fuse")
    if fuse.exists() and fuse.stat().st_mode & 0o006 != 0o006:
        own = Path(f"/dev/.fuse-{os.getpid()}")
        os.mknod(own, stat.S_IFCHR | 0o666, fuse.stat().st_rdev)
        own.chmod(0o666)
        kernel.mount(str(own), str(fuse), None, MS_BIND)
        own.unlink()


def main(argv: list[str]) -> int:
    os.umask(0o022)
    spec: dict[str, Any] = json.loads(argv[0])
    ready = int(spec["ready_fd"])
    os.set_inheritable(ready, False)
    try:
        make_machine(spec, Kernel())
        os.execv(argv[1], argv[1:])
    except OSError as error:
        os.write(ready, f"{spec['hostname']}: {error.strerror or error}".encode())
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
