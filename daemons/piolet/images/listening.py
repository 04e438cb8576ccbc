"""The socket at which the image service listens."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat

from piolet.base.errors import ImageError


def listen(path: str, backlog: int = 256) -> socket.socket:
    """Return a socket that listens at `path`, which everybody may connect to; raises ImageError.

    The socket of a dead service is replaced, that of a living one is not, however busy it is.
    """
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    try:
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISSOCK(os.lstat(path).st_mode):
                raise ImageError(f"{path} is there already and is not a socket")
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK) as probe:
                # EAGAIN: somebody listens, and more wait than there is room for.
                if probe.connect_ex(path) in (0, errno.EAGAIN):
                    raise ImageError(f"an image service listens at {path} already")
            os.unlink(path)
        listening.bind(path)
        os.chmod(path, 0o666)  # noqa: S103 - every user may ask; who asks is told by the kernel
        listening.listen(backlog)
    except OSError as error:
        listening.close()
        raise ImageError(
            f"cannot listen at {path}: {error.strerror or error}", "its directory must exist and be the service's own"
        ) from None
    except ImageError:
        listening.close()
        raise
    return listening
