"""Image errors that travel: from a child process to the service, and from the service to a client.

Only a message, a hint and the kind cross; a traceback never does.
"""

from __future__ import annotations

import errno
from typing import Any

from piolet.base.errors import ImageError

_TEXT_LIMIT = 4000


class RegistryUnreachable(ImageError):  # noqa: N818 - named for what is the case
    """The registry did not answer: connection refused, no such host, or a timeout."""


class Denied(ImageError):  # noqa: N818 - named for what is the case
    """The registry does not give the image to who asks, or hides that it is there."""


class ServiceBusy(ImageError):  # noqa: N818 - named for what is the case
    """The image service has too many requests in hand; asking again soon is right."""


_KINDS: dict[str, type[ImageError]] = {"unreachable": RegistryUnreachable, "busy": ServiceBusy, "denied": Denied}


def disk_full() -> ImageError:
    """Return the error for a store without space."""
    return ImageError(
        "there is no space left in the image store", "remove images that nobody needs: piolet image prune"
    )


def no_memory() -> ImageError:
    """Return the error for a conversion that took all the memory that it may have."""
    return ImageError(
        "there is not enough memory to convert the image", "an administrator can raise memory in [images]"
    )


def from_os(error: OSError, store: str) -> ImageError:
    """Return the error for a store that cannot be read or written, or for work that could not be started."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return disk_full()
    if error.errno in (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE):
        return ImageError(
            f"no work can be started on an image: {error.strerror or error}",
            "a limit on processes, memory or open files has been reached; try again",
        )
    hint = "an administrator can mount it with rw" if error.errno == errno.EROFS else None
    return ImageError(f"the image store {store} cannot be used: {error.strerror or error}", hint)


def to_wire(error: ImageError) -> dict[str, Any]:
    """Return `error` as a JSON object with `message`, `hint` and `kind`."""
    kind = next((name for name, kind in _KINDS.items() if isinstance(error, kind)), "image")
    hint = None if error.hint is None else error.hint[:_TEXT_LIMIT]
    return {"message": error.message[:_TEXT_LIMIT], "hint": hint, "kind": kind}


def from_wire(value: Any) -> ImageError:
    """Return the error that `to_wire` described; what is malformed becomes an error that says so."""
    if not isinstance(value, dict) or not isinstance(value.get("message"), str):
        return ImageError("the image service reported an error that cannot be read")
    hint = value.get("hint")
    made = _KINDS.get(str(value.get("kind")), ImageError)
    return made(value["message"], hint if isinstance(hint, str) else None)
