"""Whether the images of a store are still what was converted: each is read once, and its SHA-256 compared.

The SHA-256 was recorded when the image was converted; one of an older release has none, and nothing is made up for it.
What the kernel has of a file in memory is dropped first where it lets us, so that it is the storage that is asked.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Callable, Iterable
from typing import Any

from piolet.base import units
from piolet.images.store import Store

GOOD, DAMAGED, NO_RECORD, UNREADABLE = "good", "damaged", "no record", "unreadable"
_CHUNK = 4 * 1024 * 1024


def verify(
    store: Store, entries: Iterable[dict[str, Any]], tell: Callable[[str], None], stop: threading.Event
) -> list[dict[str, Any]]:
    """Return `entries`, which are Admin's, each with its `state`; ends early, with less, when `stop` is set."""
    wanted = list(entries)
    found = []
    for number, entry in enumerate(wanted, 1):
        if stop.is_set():
            break
        name = (entry["references"] or [entry["digest"][:19]])[0]

        def told(done: int, what: str = f"image {number} of {len(wanted)}, {name}", size: int = entry["size"]) -> None:
            tell(f"reading {what}: {units.size(done)} of {units.size(size)}")

        found.append({**entry, "state": _state(store, entry["digest"], told, stop)})
    return found


def _state(store: Store, digest: str, told: Callable[[int], None], stop: threading.Event) -> str:
    metadata = store.metadata(digest)
    state = _held_against(store, digest, metadata, told, stop)
    if state == DAMAGED and store.metadata(digest) != metadata:  # it was converted again just now
        return _held_against(store, digest, store.metadata(digest), told, stop)
    return state


def _held_against(
    store: Store, digest: str, metadata: dict[str, Any], told: Callable[[int], None], stop: threading.Event
) -> str:
    recorded = metadata.get("sha256")
    try:
        # The record is read first: a file that is there later than its record is a newer one.
        fd = os.open(store.image_path(digest), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return UNREADABLE
    try:
        if not isinstance(recorded, str):
            return NO_RECORD
        if os.fstat(fd).st_size != metadata.get("size"):
            return DAMAGED
        with contextlib.suppress(OSError):
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        read, done = hashlib.sha256(), 0
        while chunk := os.read(fd, _CHUNK):
            if stop.is_set():
                return UNREADABLE
            read.update(chunk)
            done += len(chunk)
            told(done)
        return GOOD if read.hexdigest() == recorded else DAMAGED
    except OSError:
        return UNREADABLE
    finally:
        os.close(fd)
