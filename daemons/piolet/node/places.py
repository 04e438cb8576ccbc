"""What pioletd makes on the disk before it starts: directories that are an account's, and the sockets it hears at."""

from __future__ import annotations

import contextlib
import os
import pwd
import socket
import stat
from pathlib import Path

from piolet.base.errors import PioletError
from piolet.events import parts
from piolet.node.settings import Settings
from piolet.transport.listener import clear_path, listen

_BACKLOG = 1024


def listener_at(path: Path, mode: int) -> socket.socket:
    """Return a socket that listens at `path`. Raises PioletError."""
    if not clear_path(str(path)):
        raise PioletError(f"another pioletd listens on {path} already")
    try:
        return listen(str(path), mode, _BACKLOG)
    except OSError as error:
        raise PioletError(f"cannot listen on {path}: {error.strerror}", "remove what is there instead of it") from None


def directory_of(account: pwd.struct_passwd, directory: Path) -> Path:
    """Return a directory that the account alone writes to: what is sampled, or the spool of verdicts."""
    directory.mkdir(mode=0o750, parents=True, exist_ok=True)
    os.chown(directory, account.pw_uid, account.pw_gid)
    return directory


def spool_of(account: pwd.struct_passwd, path: str, config: Settings) -> None:
    """Make a spool's directory: the account writes there, and the forwarder's group reads, if there is one.

    It reads what is there already, too: the forwarder's account may have come later, or have another number now.
    """
    directory = directory_of(account, Path(path))
    try:
        group = pwd.getpwnam(config.forward.account).pw_gid
    except KeyError:
        return
    os.chown(directory, account.pw_uid, group)
    own = os.getegid()
    os.setegid(group)  # else the kernel leaves the bit out, without an error, where its unit has taken CAP_FSETID
    try:
        directory.chmod(stat.S_ISGID | 0o750)
    finally:
        os.setegid(own)
    for part in parts.parts(str(directory)):
        with contextlib.suppress(OSError):
            _give(str(directory), part, account.pw_uid, group)


def _give(directory: str, part: parts.Part, owner: int, group: int) -> None:
    """Let a group read a file of the owner's, and not what else it may have put there under such a name."""
    descriptor = parts.open_part(directory, part)
    try:
        status = os.fstat(descriptor)
        if stat.S_ISREG(status.st_mode) and status.st_uid == owner and status.st_nlink == 1:
            os.fchown(descriptor, -1, group)
    finally:
        os.close(descriptor)


def hear(path: Path) -> socket.socket:
    """Return a socket for datagrams at `path`, to which only root may send. Raises OSError."""
    path.unlink(missing_ok=True)
    hearing = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    # Before anybody can send: what comes earlier has no word of who sent it.
    hearing.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    before = os.umask(0o177)
    try:
        hearing.bind(str(path))
    finally:
        os.umask(before)
    return hearing
