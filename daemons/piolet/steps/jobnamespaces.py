"""The mount namespace that Slurm has made around a job, where it makes one: a /tmp and a /dev/shm of the job's own.

job_container/tmpfs, namespace/tmpfs and namespace/linux make it before the job's first step and keep it in a file below
their BasePath: JOB/.ns, or JOB/.ns/mnt. Up to Slurm 25 or so slurmstepd stays in the node's namespace; each task joins
the job's, and so only that file leads there before there are tasks. It is looked for among the mounts that slurmstepd
sees, which are root's: who has mounts of their own has a namespace of their own, and is not slurmstepd. In 26.05
slurmstepd has joined when it announces the step, and its own namespace is the one.

Refused: a namespace that belongs to another user namespace than ours (namespace/linux with CLONE_NEWUSER), of which a
container that the job's tasks may join cannot be made from here; and more than one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import select
import stat

from piolet.base.errors import PioletError
from piolet.system import linux

_NS_GET_USERNS, _NS_GET_NSTYPE = 0xB701, 0xB703
_MOUNTED = re.compile(r"mnt:\[(\d+)\]")
_KEPT = b" - nsfs "
_MOUNTINFO_MAX = 64 << 20
_HINT = "leave out --environment, or ask an administrator: see docs/admin.md on jobs with a /tmp of their own"


class Home:
    """The node's own mount namespace, with the number `number`: most slurmstepds are in it, and most nodes keep none.

    Its mounts are read again only when the kernel says that they have changed: every step comes by here.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self._mounts = -1
        self._changes = select.poll()
        self._none_kept = False

    def has(self, stepd: int) -> bool:
        """Return whether the process is in it. Raises OSError: it has ended."""
        return os.stat(f"/proc/{stepd}/ns/mnt").st_ino == self.number

    def keeps_none(self, stepd: int) -> bool:
        """Return whether the process is in it, and no namespace is kept in a file there. Raises OSError."""
        if not self.has(stepd):
            return False
        if self._mounts < 0:
            opened = os.open(f"/proc/{stepd}/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
            if not self.has(stepd):  # its number was another's in between
                os.close(opened)
                return False
            self._mounts = opened
            self._changes.register(opened, select.POLLERR | select.POLLPRI)
        elif not self._changes.poll(0):
            return self._none_kept
        self._none_kept = _KEPT not in _read(self._mounts)
        return self._none_kept


def _read(mounts: int) -> bytes:
    os.lseek(mounts, 0, os.SEEK_SET)
    pieces = []
    while piece := os.read(mounts, 1 << 16):
        pieces.append(piece)
    return b"".join(pieces)[:_MOUNTINFO_MAX]


def find(stepd: int, job: int, home: Home) -> int | None:
    """Return a descriptor of the job's mount namespace, None where it has none.

    stepd  the number of its slurmstepd
    home   the node's mount namespace, as pioletd found it when it began

    Raises PioletError: there is one, and no container can be made in it.
    """
    try:
        if home.keeps_none(stepd):
            return None
        process = os.open(f"/proc/{stepd}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None  # it has ended, and nobody waits for a container
    try:
        # Another process may have that number by now; this one stays this one as long as it is open.
        base = f"/proc/self/fd/{process}"
        with open(f"{base}/mountinfo", "rb", buffering=0) as file:
            places = candidates(_read(file.fileno()).decode("utf-8", "surrogateescape"), job)
        if not places and os.stat(f"{base}/ns/mnt").st_ino == home.number:
            return None
        with open(f"{base}/status", encoding="utf-8", errors="replace") as file:
            uid = next((line.split()[1] for line in file if line.startswith("Uid:")), "")
        # The real one: slurmstepd may be doing something as the user just now.
        if uid != "0":
            raise PioletError("the step's slurmstepd is gone", "start the step again")
        if len(places) > 1:
            raise PioletError("the job has more than one mount namespace of its own on this node", _HINT)
        for number, path in places.items():
            return _open(f"{base}/root{path}", number)
        return _open(f"{base}/ns/mnt", os.stat(f"{base}/ns/mnt").st_ino, follow=True)
    except OSError as error:
        raise PioletError(f"the job's mount namespace cannot be opened: {error.strerror}", _HINT) from None
    finally:
        os.close(process)


def candidates(mountinfo: str, job: int) -> dict[int, str]:
    """Return the mount namespaces that are kept for the job, by number, with where."""
    found = {}
    for line in mountinfo.splitlines():
        if _KEPT.decode() not in line:
            continue
        fields = line.split(" ")
        match = _MOUNTED.fullmatch(fields[3])
        if match is not None and fields[4].endswith((f"/{job}/.ns", f"/{job}/.ns/mnt")):
            found[int(match[1])] = re.sub(r"\\([0-7]{3})", lambda escape: chr(int(escape[1], 8)), fields[4])
    return found


def _open(path: str, number: int, follow: bool = False) -> int:
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    namespace = os.open(path, flags)
    try:
        # What was opened is what mountinfo told, and of the kernel's making: numbers are the node's.
        found, ours = os.fstat(namespace), os.stat("/proc/self/ns/mnt")
        if (found.st_dev, found.st_ino) != (ours.st_dev, number):
            raise PioletError("the job's mount namespace was replaced just now", "start the step again")
        if fcntl.ioctl(namespace, _NS_GET_NSTYPE) != linux.CLONE_NEWNS or not _is_ours(namespace):
            raise PioletError(
                "an environment cannot be made for a job that Slurm puts into a user namespace of its own "
                "(namespace/linux with CLONE_NEWUSER)",
                _HINT,
            )
        return namespace
    except BaseException:
        os.close(namespace)
        raise


def _is_ours(namespace: int) -> bool:
    """Return whether the namespace belongs to the user namespace that this process is in."""
    try:
        owner = fcntl.ioctl(namespace, _NS_GET_USERNS)
    except OSError:
        return False
    try:
        there, here = os.fstat(owner), os.stat("/proc/self/ns/user")
        return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)
    finally:
        os.close(owner)


def enter(namespace: int, scratch: str) -> int:
    """Go to a copy of the job's mounts that has a place to build in; return a descriptor of the copy's namespace.

    `scratch` is made as it is among the node's mounts: a directory in a tmpfs, below a directory that is root's.
    Raises PioletError: no such directory is there; and OSError.
    """
    # Opened before: a job with a PID namespace has a /proc of its own, in which this process is not.
    own = os.open("/proc/self/ns", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        linux.setns(namespace, linux.CLONE_NEWNS)
        linux.unshare(linux.CLONE_NEWNS)
        linux.mount("none", "/", None, linux.MS_REC | linux.MS_SLAVE)
        base = os.path.dirname(scratch)
        # Among these mounts a directory may be the job's user's, and what is in it, too.
        place = base
        while True:
            status = os.lstat(place)
            if not stat.S_ISDIR(status.st_mode) or status.st_uid != 0 or status.st_mode & 0o022:
                raise PioletError(f"no container can be built in this job: {place} is not root's there", _HINT)
            if place == "/":
                break
            place = os.path.dirname(place)
        linux.mount("pioletd", base, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "mode=0755,size=16m")
        os.mkdir(scratch, 0o755)
        return os.open("mnt", os.O_RDONLY | os.O_CLOEXEC, dir_fd=own)
    finally:
        with contextlib.suppress(OSError):
            os.close(own)
