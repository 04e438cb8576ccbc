"""The process that saves a container when its tasks have ended: beside them, and outside of the container.

Forked by the worker where a definition says `save`, before it leaves the host's mounts: it is the user's, in the
step's control groups and in the container's user namespace, and ends with either. It sleeps until the last task asks
(around.py), and then starts `piolet env keep`, whose words are the answer. Slurm sends signals to all that is in the
step, and it has to outlast them as tasks may: it ignores what can be ignored.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Sequence

from piolet.base.errors import ContainerError
from piolet.container import view
from piolet.container.plan import ANSWER, ASK, KEEPER, SHARED, PlannedSave
from piolet.system import linux
from piolet.transport import packets

TREE = 3
"""The descriptor of the container's root that the program has."""
_ORDER_MAX = 4 << 20
_READY_S = 10.0
_SAID_MAX = 1 << 16


class Keeper:
    """Forks the process; make it in the container's user namespace, before the worker leaves the mount namespace.

    words  of the command `piolet`
    """

    def __init__(self, words: Sequence[str]) -> None:
        self._channel, theirs = linux.message_pair(_ORDER_MAX)
        pid = os.fork()
        if pid == 0:
            try:
                self._channel.close()
                linux.close_all_but({theirs.fileno()})
                _wait(theirs, words)
            finally:
                os._exit(1)
        theirs.close()

    def hand_over(self, save: PlannedSave) -> None:
        """Give it the finished container, which this process is in. Raises ContainerError."""
        self._channel.settimeout(_READY_S)
        try:
            seen = view.here()
            shared = os.open(SHARED, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            order = {"save": save, "seen": {"points": seen.points, "below": seen.below}}
            packets.send(self._channel, packets.encode(order), [seen.tree, shared])
            os.close(seen.tree)
            os.close(shared)
            ready = self._channel.recv(16)
        except OSError as error:
            raise ContainerError(f"the container cannot be prepared to be saved: {error.strerror or error}") from None
        if not ready:
            raise ContainerError("the process that is to save the container died", "the node may be short of memory")


def _wait(channel: socket.socket, words: Sequence[str]) -> None:
    """Be the process. Never returns."""
    linux.set_name("piolet-keeper")
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD}:
        signal.signal(number, signal.SIG_IGN)
    null = os.open("/dev/null", os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    packet = packets.receive(channel, _ORDER_MAX, 2)
    if len(packet.descriptors) != 2:
        os._exit(0)
    tree, shared = packet.descriptors
    os.mkfifo(ASK, 0o600, dir_fd=shared)
    # Open at both ends, so that who asks need not wait for us, nor we for the end of others.
    ask = os.open(ASK, os.O_RDWR | os.O_CLOEXEC, dir_fd=shared)
    _put(shared, KEEPER, f"{os.getpid()}\n".encode())
    channel.send(b"ready")
    channel.close()
    os.read(ask, 16)
    _put(shared, ANSWER, _save(packet.data, tree, words))
    os._exit(0)


def _put(folder: int, name: str, data: bytes) -> None:
    """Make a file that is whole when it is there."""
    new = os.open(f".{name}", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=folder)
    os.write(new, data)
    os.close(new)
    os.rename(f".{name}", name, src_dir_fd=folder, dst_dir_fd=folder)


def _save(order: bytes, tree: int, words: Sequence[str]) -> bytes:
    """Start the program with the order as its input, and return what it says."""
    said = os.memfd_create("piolet-said", os.MFD_CLOEXEC)
    child = os.fork()
    if child == 0:
        try:
            given = os.memfd_create("piolet-order", os.MFD_CLOEXEC)
            os.write(given, order)
            os.lseek(given, 0, os.SEEK_SET)
            for descriptor, number in ((given, 0), (said, 1), (said, 2), (tree, TREE)):
                if descriptor == number:
                    os.set_inheritable(number, True)
                else:
                    os.dup2(descriptor, number)
            linux.close_all_but({TREE})
            # Files of the image that nobody may read are its user's all the same.
            linux.keep_over_exec(linux.CAP_DAC_READ_SEARCH)
            os.execve(words[0], [*words, "env", "keep"], {"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C.UTF-8"})
        except OSError as error:
            os.write(2, f"piolet: warning: the container was not saved: {error.strerror}\n".encode())
        finally:
            os._exit(127)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    text = os.pread(said, _SAID_MAX, 0)
    if code < 0:
        how = signal.Signals(-code).name
        text += f"piolet: warning: the container was not saved: what saves it was ended by {how}\n".encode()
    return text
