"""The socket at which the image service listens."""

from __future__ import annotations

import contextlib
import os
import socket
import stat

from piolet.base.errors import ImageError
from piolet.transport import listener


def listen(path: str, backlog: int = 256) -> socket.socket:
    """Return a socket that listens at `path`, which everybody may connect to; raises ImageError.

    The socket of a dead service is replaced, that of a living one is not, however busy it is.
    """
    try:
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISSOCK(os.lstat(path).st_mode):
                raise ImageError(f"{path} is there already and is not a socket")
        if not listener.clear_path(path, sure=False):
            raise ImageError(f"an image service listens at {path} already")
        # Every user may ask; who asks is told by the kernel.
        return listener.listen(path, 0o666, backlog)
    except OSError as error:
        raise ImageError(
            f"cannot listen at {path}: {error.strerror or error}", "its directory must exist and be the service's own"
        ) from None
