"""Mounts SquashFS files with squashfuse, as the user: their own, and where the kernel has no better way the store's.

The kernel never parses what a user wrote. The file system is mounted inside the container's mount namespace, and
squashfuse itself runs outside of it: when the namespace goes, the kernel ends the connection and squashfuse
ends by itself. Nobody has to remember it, not even a daemon that was killed in between. It is in the container's
user namespace, though: one that a user has stopped is killed with the container.

It is the user's to trace and to change, so it runs where the user's tasks do: the worker has entered the step's control
group. Slurm sends signals to all that is in there, and the image must outlast them as the tasks may: it ignores
what can be ignored.
"""

from __future__ import annotations

import os
import select
import signal
import socket

from piolet.base.errors import ContainerError
from piolet.system import linux
from piolet.transport import packets

_SQUASHFS_MAGIC = b"hsqs"
_ANSWER_S = 10.0
_PROGRAM_MAX = 64 << 20


def is_of_fuse_2(squashfuse: str) -> bool:
    """Return whether a program is linked with the old libfuse: only the new one serves a mount that was made for it."""
    try:
        with open(squashfuse, "rb") as file:
            program = file.read(_PROGRAM_MAX)
    except OSError:
        return False
    return b"\0libfuse.so.2\0" in program and b"\0libfuse3.so." not in program


class Mounter:
    """Starts squashfuse processes in the namespaces in which it was made.

    Make it in the container's user namespace, before the worker leaves the mount namespace: a helper stays behind.
    """

    def __init__(self, squashfuse: str) -> None:
        self._squashfuse = squashfuse
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if pid == 0:
            try:
                self._socket.close()
                linux.close_all_but({theirs.fileno()})
                _serve(theirs, squashfuse)
            finally:
                os._exit(1)
        theirs.close()

    def mount(self, path: str, target: str) -> None:
        """Mount the SquashFS file `path` (opened as this user) at the directory `target`.

        Raises ContainerError: not readable, not SquashFS, or squashfuse does not serve it, or is not there.
        """
        self._check(path)
        try:
            # Non-blocking, so that a FIFO cannot hold the worker.
            image = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise ContainerError(f"cannot open the image {path}: {error.strerror}") from None
        try:
            try:
                magic = os.pread(image, 4, 0)
            except OSError:
                magic = b""
            if magic != _SQUASHFS_MAGIC:
                raise ContainerError(
                    f"{path} is not a SquashFS file", "make one with: piolet image pull, or mksquashfs"
                )
            self._serve(image, path, target)
        finally:
            os.close(image)

    def serve(self, image: int, name: str, target: str) -> None:
        """Mount the SquashFS file behind a descriptor, which messages call `name`. Raises ContainerError as `mount`."""
        self._check(name)
        self._serve(image, name, target)

    def _check(self, name: str) -> None:
        if not os.access(self._squashfuse, os.X_OK):
            raise ContainerError(
                f"cannot mount {name}: {self._squashfuse} is not there, or cannot be run",
                "an administrator installs squashfuse on the node",
            )

    def _serve(self, image: int, name: str, target: str) -> None:
        try:
            device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise ContainerError(
                f"cannot mount {name}: /dev/fuse: {error.strerror}",
                "an administrator loads the module fuse and gives /dev/fuse the mode 0666",
            ) from None
        try:
            options = f"fd={device},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()},allow_other"
            flags = linux.MS_RDONLY | linux.MS_NOSUID | linux.MS_NODEV
            linux.mount(f"piolet:{os.path.basename(name)}", target, "fuse.squashfuse", flags, options)
            packets.send(self._socket, b"mount", [image, device])
        except OSError as error:
            raise ContainerError(f"cannot mount {name}: {error.strerror}") from None
        finally:
            os.close(device)
        self._answer(name, target)

    def _answer(self, path: str, target: str) -> None:
        """Wait until the file system answers: a look at its root blocks until squashfuse serves, or fails.

        The look is a child's, since only SIGKILL ends one that the kernel has handed to a file system.
        """
        code = _looks(target)
        if code:
            why = "no answer in time" if code < 0 else os.strerror(code)
            raise ContainerError(
                f"{self._squashfuse} cannot serve {path}: {why}",
                "is the file complete, its compression one that squashfuse knows, and squashfuse built with FUSE 3?",
            )


def _looks(target: str) -> int:
    """Return 0 if the directory can be listed, the errno if not, and -1 if it does not answer in time."""
    pid = os.fork()
    if pid == 0:
        code = 0
        try:
            os.stat(f"{target}/.")
            os.listdir(target)
        except OSError as error:
            code = error.errno or 5
        finally:
            os._exit(code)
    process = os.pidfd_open(pid)
    in_time = bool(select.select([process], [], [], _ANSWER_S)[0])
    os.close(process)
    if in_time:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    # Not waited for: a request that squashfuse has taken ends only with squashfuse, and that with the container.
    os.kill(pid, signal.SIGKILL)
    return -1


def _serve(requests: socket.socket, squashfuse: str) -> None:
    """The helper: one squashfuse for each pair of descriptors, until the worker is gone."""
    uid, gid = os.getuid(), os.getgid()
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        # What is ignored stays so over exec, and libfuse takes over no signal that is.
        signal.signal(number, signal.SIG_IGN)
    null = os.open("/dev/null", os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    while True:
        packet = packets.receive(requests, 16, 2)
        if not packet.data or len(packet.descriptors) != 2:
            os._exit(0)
        image, device = packet.descriptors
        if os.fork():
            os.close(image)
            os.close(device)
            continue
        requests.close()
        os.set_inheritable(image, True)
        os.set_inheritable(device, True)
        options = f"uid={uid},gid={gid},allow_other"
        os.execv(squashfuse, ["squashfuse", "-f", "-s", "-o", options, f"/proc/self/fd/{image}", f"/dev/fd/{device}"])
