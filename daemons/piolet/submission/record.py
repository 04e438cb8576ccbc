"""The record that the plugin in srun takes: a definition, and what it was made from.

The layout is `struct piolet_record` of wire.h, filled through cffi, so that there is no second copy
of it. The same bytes go to the user's cache (cache.py).
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections.abc import Iterable
from enum import Enum

from piolet._wire import ffi
from piolet.base.errors import PioletError
from piolet.submission.dependencies import Dependency, Kind

RECORD_MAX = ffi.integer_const("PIOLET_RECORD_MAX")
DEPENDENCIES_MAX = ffi.integer_const("PIOLET_DEPENDENCIES_MAX")
DEFINITION_MAX = ffi.integer_const("PIOLET_DEFINITION_MAX")
WRITE_TIMEOUT_S = 10.0


class Script(Enum):
    """What becomes of a batch script: said by what stands in front of the definition's JSON."""

    OUTSIDE = b""
    INSIDE = bytes([ffi.integer_const("PIOLET_SCRIPT_INSIDE")])
    BARE = bytes([ffi.integer_const("PIOLET_SCRIPT_BARE")])


def pack(
    definition: bytes, request: str, cwd: str, dependencies: Iterable[Dependency], script: Script = Script.OUTSIDE
) -> bytes | None:
    """Return the record, or None when there are more dependencies than one can hold."""
    definition = script.value + definition
    if len(definition) > DEFINITION_MAX:
        raise PioletError(f"the definition is {len(definition)} bytes long, more than the limit of {DEFINITION_MAX}")
    every = [Dependency(Kind.REQUEST, request, cwd), *dependencies]
    body = b"".join(map(_pack_dependency, every)) + definition
    size = ffi.sizeof("struct piolet_record")
    length = size + len(body)
    if len(every) > DEPENDENCIES_MAX or length > RECORD_MAX:
        return None
    head = {
        "magic": ffi.integer_const("PIOLET_RECORD_MAGIC"),
        "version": ffi.integer_const("PIOLET_VERSION"),
        "length": length,
        "dependencies": len(every),
        "definition": len(definition),
    }
    return bytes(ffi.buffer(ffi.new("struct piolet_record *", head))) + body


def packed(definition: bytes, request: str, cwd: str, script: Script = Script.OUTSIDE) -> bytes:
    """Return a record without dependencies, which always fits.

    It is what a plugin gets that has just asked: what the definition was made from is a matter for the cache alone,
    and not to be looked up where srun is in a container, whose files are others (decision 110).
    """
    record = pack(definition, request, cwd, (), script)
    assert record is not None
    return record


def _pack_dependency(dependency: Dependency) -> bytes:
    name = os.fsencode(dependency.name) + b"\0"
    value = os.fsencode(dependency.value) + b"\0"
    size = ffi.sizeof("struct piolet_dependency") + len(name) + len(value)
    padding = -size % 8
    entry = {"kind": int(dependency.kind), "length": size + padding, "name": len(name), "value": len(value)}
    if dependency.stamp is not None:
        # The members of the struct have the names of the stamp's.
        entry |= dependency.stamp._asdict()
    return bytes(ffi.buffer(ffi.new("struct piolet_dependency *", entry))) + name + value + bytes(padding)


def write(descriptor: int, record: bytes, timeout_s: float = WRITE_TIMEOUT_S) -> None:
    """Write all of `record` to `descriptor`, an open memory file or pipe, within `timeout_s` seconds.

    Raises PioletError; a file is empty then.
    """
    deadline = time.monotonic() + timeout_s
    poll = select.poll()
    try:
        poll.register(descriptor, select.POLLOUT)
        view = memoryview(record)
        while view:
            left = deadline - time.monotonic()
            if left <= 0 or not poll.poll(left * 1000):
                raise PioletError(f"nobody reads descriptor {descriptor}, to which the record should go")
            # POLLOUT of a pipe promises that this much does not block (PIPE_BUF).
            view = view[os.write(descriptor, view[: select.PIPE_BUF]) :]
    except (OSError, ValueError, OverflowError) as error:
        with contextlib.suppress(OSError, ValueError, OverflowError):
            os.ftruncate(descriptor, 0)
        reason = error.strerror if isinstance(error, OSError) else "no such descriptor"
        raise PioletError(f"cannot write the record to descriptor {descriptor}: {reason}") from None
