"""What pioletd makes on the disk before it starts: directories that are an account's, and the sockets it hears at."""

from __future__ import annotations

import os
import pwd
import socket
import stat
from pathlib import Path

from piolet.base.errors import PioletError
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
    """Make a spool's directory: the account writes there, and the forwarder's group reads, if there is one."""
    directory = directory_of(account, Path(path))
    try:
        group = pwd.getpwnam(config.forward.account).pw_gid
    except KeyError:
        return
    os.chown(directory, account.pw_uid, group)
    directory.chmod(stat.S_ISGID | 0o750)


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
