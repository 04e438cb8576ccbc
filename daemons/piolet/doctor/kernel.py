"""The node's kernel: its file systems and devices, how it mounts images, whether users may make namespaces."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import stat
import time
from collections.abc import Iterator

from piolet.doctor.findings import BAD, NOBODY, OK, SKIPPED, WARN, Finding, Machine
from piolet.node.root import imagemounts
from piolet.system import usernamespaces

_WAIT_S = 3.0
_CLONE_NEWUSER, _CLONE_NEWNS = 0x10000000, 0x00020000


def kernel(machine: Machine) -> Iterator[Finding]:
    """Whether the kernel can make containers, and which file systems it knows."""
    if not machine.here("pioletd"):
        yield Finding("kernel", SKIPPED, "no containers are made here")
        return
    if imagemounts.can_set_attributes():
        yield Finding("kernel", OK, f"Linux {machine.release}")
    else:
        choice = imagemounts.too_old(machine.release)
        yield Finding("kernel", BAD, choice.refusal, choice.hint)
    known = (machine.proc / "filesystems").read_text("ascii").split()
    for name in ("overlay", "squashfs"):
        if name not in known:
            text = f"the kernel does not know the file system {name} (it may load it when it is asked for)"
            yield Finding("kernel", WARN, text, f"modprobe {name}, and note it in /etc/modules-load.d")


def image_mounts(machine: Machine) -> Iterator[Finding]:
    """By which way images of the store come to users: as pioletd has found, or as root finds here."""
    name = "image mounts"
    if not machine.here("pioletd") or not imagemounts.can_set_attributes():
        return
    node, squashfuse = machine.config.node, machine.config.environment.squashfuse
    choice = imagemounts.noted(node.state)
    if choice is None and os.geteuid() == 0:
        choice = imagemounts.choose_apart(node.image_mounts, squashfuse)
    if choice is None:
        text = "pioletd, which tries how this kernel mounts images, has not been started yet"
        yield Finding(name, SKIPPED, text, "start it, or look again as root")
    elif not choice.way:
        yield Finding(name, BAD, choice.describe(), choice.hint)
    elif choice.way == imagemounts.FUSE and node.image_mounts != imagemounts.FUSE:
        hint = "modprobe dm_mod, note it in /etc/modules-load.d, and start pioletd again: device mapper is faster"
        yield Finding(name, WARN, choice.describe(), hint)
    else:
        yield Finding(name, OK, choice.describe())


def user_namespaces(machine: Machine) -> Iterator[Finding]:
    """Whether an ordinary user may make a user namespace: settings first, since they say how to mend it."""
    name = "user namespaces"
    if not machine.here("pioletd"):
        return
    choice = imagemounts.noted(machine.config.node.state)
    if choice is not None and choice.helped:
        yield Finding(name, OK, "users may make none by themselves; pioletd makes those of containers")
        return
    for key, bad, good in usernamespaces.SETTINGS:
        with contextlib.suppress(OSError):
            if (machine.proc / "sys" / key.replace(".", "/")).read_text("ascii").strip() == bad:
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
