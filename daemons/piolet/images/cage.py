"""The cage: where bytes that a user or a registry chose are read, by our own code and by foreign programs.

A process in it can write its own scratch directory and nothing else, and read only what the programs need to run:
not the store, not other pulls, not the image service's files, not a user's home. Three walls, as many of them as the
kernel gives (docs/images.md says which is worth what):

  namespaces   nothing else has a name (walls.py)
  landlock     nothing else may be opened or changed (landlock.py)
  seccomp      no system calls that would go round these two (seccomp.py)

Namespaces alone suffice, or Landlock from version 3 on together with seccomp; without either, nothing is read.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import resource
import select
import signal
import struct
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field

import piolet
from piolet.base.errors import ImageError
from piolet.images import landlock, seccomp, walls
from piolet.system import linux

WALLS = ("namespaces", "landlock")
_ALONE = 3  # before, truncate(2) is not governed
_OPEN_FILES = 1024
_PROBE_S = 10.0
_PR_SET_DUMPABLE, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 4, 24, 38
_CAPABILITIES, _CAPABILITY_VERSION = 64, 0x20080522
_LIBC = ctypes.CDLL(None, use_errno=True)
_SYSTEM = (
    "/usr", "/bin", "/sbin", "/lib", "/lib64", "/lib32", "/libx32", "/etc/ld.so.cache", "/etc/ld.so.conf",
    "/etc/ld.so.conf.d", "/etc/alternatives", "/etc/localtime",
)  # fmt: skip
_FOR_REGISTRIES = (
    "/etc/resolv.conf", "/etc/hosts", "/etc/host.conf", "/etc/nsswitch.conf", "/etc/gai.conf", "/etc/services",
    "/etc/protocols", "/etc/passwd", "/etc/group", "/etc/ssl", "/etc/pki", "/etc/ca-certificates",
    "/etc/crypto-policies", "/var/lib/ca-certificates", "/etc/containers", "/etc/docker/certs.d",
)  # fmt: skip
# What skopeo reads of a user's configuration; not auth.json beside it, which has passwords for other registries.
_OF_A_USER = ("registries.conf", "registries.conf.d", "registries.d", "policy.json", "certs.d")
_STORES_OF_PROGRAMS = ("/nix/store", "/gnu/store")


@dataclass(frozen=True)
class Cage:
    """`scratch` may be written; `readable` is shown beside what every program needs; `network`: sockets are allowed.

    lenient changes of modes by name are answered as if they were done: scanners give up where they are refused
    walls   which walls are tried; all of them but in tests
    """

    scratch: str
    readable: tuple[str, ...] = ()
    network: bool = False
    lenient: bool = False
    walls: tuple[str, ...] = WALLS
    reasons: list[str] = field(default_factory=list)

    def enter(self) -> tuple[str, ...]:
        """Go on inside; returns the walls that stand. Raises ImageError where there are too few.

        Before it, the process has read nothing of a user's; it has one thread. After it, a process of another number
        may be the one that goes on, while the one before waits for it.
        """
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if not 0 <= soft <= _OPEN_FILES:  # where /proc cannot be listed, that many are closed one by one
            resource.setrlimit(resource.RLIMIT_NOFILE, (_OPEN_FILES, hard))
        readable = [*_SYSTEM, *(_FOR_REGISTRIES if self.network else ()), *_own(), *self.readable]
        standing = []
        if "namespaces" in self.walls:
            refusal = walls.enter(self.scratch, readable, network=self.network)
            if refusal is None:
                standing.append("namespaces")
            else:
                self.reasons.append(f"user namespaces: {refusal}")
        _give_up_rights()
        if "landlock" in self.walls:
            standing += self._landlock(readable, "namespaces" in standing)
        if seccomp.known():
            try:
                seccomp.deny(network=self.network, modes=0 if self.lenient else errno.EPERM)
                standing.append("seccomp")
            except OSError as error:
                self.reasons.append(f"seccomp: {error.strerror}")
        if "namespaces" not in standing and not {"landlock", "seccomp"} <= set(standing):
            raise ImageError(
                f"this machine gives no cage to read images in ({'; '.join(self.reasons) or 'none was tried'})",
                "allow user namespaces (sysctl user.max_user_namespaces) or boot with Landlock (lsm=landlock,…); "
                "piolet doctor shows which there is",
            )
        return tuple(standing)

    def _landlock(self, readable: Sequence[str], namespaces: bool) -> list[str]:
        version = landlock.version()
        if version < (1 if namespaces else _ALONE):
            self.reasons.append(f"Landlock: {f'version {version}' if version else 'not in use'}")
            return []
        try:
            landlock.restrict([self.scratch], readable, walls.DEVICES)
        except OSError as error:
            self.reasons.append(f"Landlock: {error.strerror}")
            return []
        return ["landlock"]


def _give_up_rights() -> None:
    """Have no capabilities, here and in any program: root's in a store of its own, and those over new namespaces."""
    _LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    for number in range(_CAPABILITIES):
        _LIBC.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0)
    if _LIBC.capset(struct.pack("=Ii", _CAPABILITY_VERSION, 0), bytes(24)):
        raise ImageError(f"capabilities cannot be given up: {os.strerror(ctypes.get_errno())}")
    _LIBC.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def narrow() -> None:
    """Called between fork and exec of a program: it ends with its parent, and cannot reach the process that starts it.

    Outside of a cage it makes none; the worker enters one first.
    """
    linux.die_with_parent(signal.SIGKILL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if landlock.version():
        landlock.nest()
    if seccomp.known():
        with contextlib.suppress(OSError):
            seccomp.deny_program()


def program(path: str) -> tuple[str, ...]:
    """Return what has to be readable for the program at `path`: itself, and the libraries beside it."""
    real = os.path.realpath(path)
    found = [path, real]
    for place in (path, real):
        prefix, name = os.path.split(os.path.dirname(place))
        if name in ("bin", "sbin") and prefix != "/":
            found += [f"{prefix}/{folder}" for folder in ("lib", "lib64", "libexec")]
    return (*found, *(store for store in _STORES_OF_PROGRAMS if real.startswith(store + "/")))


def user_configuration(home: str) -> tuple[str, ...]:
    """Return what skopeo reads in the home of a user, in a store of the user's own."""
    return tuple(f"{home}/.config/containers/{name}" for name in _OF_A_USER)


def certificates() -> tuple[str, ...]:
    """Return where this process's environment says that certificates are."""
    named = [os.environ.get("SSL_CERT_FILE", ""), *os.environ.get("SSL_CERT_DIR", "").split(":")]
    return tuple(path for path in named if path.startswith("/"))


def probe(uid: int | None = None) -> tuple[tuple[str, ...], list[str]]:
    """Return which walls this process, or one of the account `uid`, has here, and why not others; tried in a child."""
    scratch = tempfile.mkdtemp(prefix="piolet-cage-")
    reading, writing = os.pipe2(os.O_CLOEXEC)
    try:
        if uid is not None:
            os.chown(scratch, uid, uid)
        pid = os.fork()
        if pid == 0:
            with contextlib.suppress(BaseException):
                _try(scratch, uid, writing)
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading, encoding="utf-8") as pipe:
            if not select.select([pipe], [], [], _PROBE_S)[0]:
                os.kill(pid, signal.SIGKILL)
            standing, *reasons = pipe.read().split("\n")
        os.waitpid(pid, 0)
    finally:
        os.rmdir(scratch)
    return tuple(standing.split()), reasons


def _try(scratch: str, uid: int | None, answer: int) -> None:
    if uid is not None:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        _LIBC.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)  # as after an exec: its maps in /proc are its own
    tried = Cage(scratch)
    standing: tuple[str, ...] = ()
    with contextlib.suppress(ImageError):
        standing = tried.enter()
    os.write(answer, "\n".join([" ".join(standing), *tried.reasons]).encode())


def _own() -> list[str]:
    """Return where this interpreter's library and our own code lie: some modules are loaded late."""
    return [os.path.dirname(os.__file__), os.path.dirname(os.path.abspath(piolet.__file__))]
