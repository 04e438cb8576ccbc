"""The node's kernel: its age, its file systems and devices, and whether users may make namespaces."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import stat
import time
from collections.abc import Iterator

from piolet.doctor.findings import BAD, NOBODY, OK, SKIPPED, WARN, Finding, Machine

_LEAST, _STORE = (5, 12), (6, 2)
_WAIT_S = 3.0
_CLONE_NEWUSER, _CLONE_NEWNS = 0x10000000, 0x00020000


def kernel(machine: Machine) -> Iterator[Finding]:
    """Whether the kernel is new enough for the mounts that containers are made of."""
    if not machine.here("pioletd"):
        yield Finding("kernel", SKIPPED, "no containers are made here")
        return
    match = re.match(r"(\d+)\.(\d+)", machine.release)
    version = (int(match[1]), int(match[2])) if match else (0, 0)
    if version < _LEAST:
        least = "{}.{}".format(*_LEAST)
        text = f"Linux {machine.release} cannot make containers without root: {least} is the oldest"
        yield Finding("kernel", BAD, text, "boot a newer kernel")
    elif version < _STORE:
        text = f"Linux {machine.release} has no idmapped SquashFS: steps with images of the site's store fail"
        yield Finding("kernel", BAD, text, "boot Linux 6.2 or newer")
    else:
        yield Finding("kernel", OK, f"Linux {machine.release}")
    known = (machine.proc / "filesystems").read_text("ascii").split()
    for name in ("overlay", "squashfs"):
        if name not in known:
            text = f"the kernel does not know the file system {name} (it may load it when it is asked for)"
            yield Finding("kernel", WARN, text, f"modprobe {name}, and note it in /etc/modules-load.d")


def user_namespaces(machine: Machine) -> Iterator[Finding]:
    """Whether an ordinary user may make a user namespace: settings first, since they say how to mend it."""
    name = "user namespaces"
    if not machine.here("pioletd"):
        return
    for setting, bad in (
        ("user/max_user_namespaces", "0"),
        ("kernel/unprivileged_userns_clone", "0"),
        ("kernel/apparmor_restrict_unprivileged_userns", "1"),
    ):
        with contextlib.suppress(OSError):
            if (machine.proc / "sys" / setting).read_text("ascii").strip() == bad:
                key, good = setting.replace("/", "."), "15000" if bad == "0" and "max" in setting else str(1 - int(bad))
                hint = f"sysctl -w {key}={good}, and note it in /etc/sysctl.d"
                yield Finding(name, BAD, f"users may not make them: {key} is {bad}", hint)
                return
    if _can_unshare():
        yield Finding(name, OK, "users may make them")
    else:
        hint = "a security module or a container around this machine forbids it; see the kernel's log"
        yield Finding(name, BAD, "users may not make them: unshare(2) is refused", hint)


def _can_unshare() -> bool:
    """Try it in a child, as nobody where this is root."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setresgid(NOBODY, NOBODY, NOBODY)
                os.setresuid(NOBODY, NOBODY, NOBODY)
            status = 1 if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWUSER | _CLONE_NEWNS) else 0
        finally:
            os._exit(status)
    end = time.monotonic() + _WAIT_S
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status == 0
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return False


def devices(machine: Machine) -> Iterator[Finding]:
    """Whether the devices are there that mount images: loop devices by the kernel, FUSE by users."""
    if not machine.here("pioletd"):
        return
    for name, module, state, why, users in (
        ("loop-control", "loop", BAD, "images of the site's store cannot be mounted", False),
        ("fuse", "fuse", WARN, ".sqsh files that users bring cannot be mounted", True),
    ):
        path = machine.dev / name
        if not path.exists():
            hint = f"modprobe {module}, and note it in /etc/modules-load.d"
            yield Finding("devices", state, f"{path} is not there: {why}", hint)
        elif users and stat.S_IMODE(path.stat().st_mode) & 0o006 != 0o006:
            yield Finding("devices", state, f"{path} is not for users: {why}", f"chmod 0666 {path}")
        else:
            yield Finding("devices", OK, str(path))
