"""The record that the plugin in srun takes: a definition, and what it was made from.

The layout is `struct piolet_record` of wire.h, filled through cffi, so that there is no second copy
of it. The same bytes go to the user's cache, where the plugin finds them the next time without
starting Python. A cache that cannot be written is no error: the next srun is slower, that is all.
"""

from __future__ import annotations

import contextlib
import os
import select
import stat
import time
from collections.abc import Iterable, Mapping

from piolet._wire import ffi
from piolet.base.errors import PioletError
from piolet.submission.dependencies import Dependency, Kind

RECORD_MAX = ffi.integer_const("PIOLET_RECORD_MAX")
DEPENDENCIES_MAX = ffi.integer_const("PIOLET_DEPENDENCIES_MAX")
DEFINITION_MAX = ffi.integer_const("PIOLET_DEFINITION_MAX")
WRITE_TIMEOUT_S = 10.0
CACHE_ENTRIES = 256
_UNFINISHED = ".new-"

# A file that changed less than this before it was read may change again without a new time stamp.
_FRESH_NS = 50_000_000
_FRESH_COARSE_NS = 2_000_000_000


def pack(definition: bytes, request: str, cwd: str, dependencies: Iterable[Dependency]) -> bytes | None:
    """Return the record, or None when there are more dependencies than one can hold."""
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


def is_settled(dependencies: Iterable[Dependency], now_ns: int) -> bool:
    """Return whether every file had been left alone for a while at `now_ns`, before any was read.

    Time stamps move in ticks, of a whole second on some file systems: a file that is written again
    within the tick in which it was read looks unchanged.
    """
    for stamp in (dependency.stamp for dependency in dependencies):
        if stamp is not None:
            coarse = stamp.mtime_ns % 1_000_000_000 == 0 and stamp.ctime_ns % 1_000_000_000 == 0
            margin = _FRESH_COARSE_NS if coarse else _FRESH_NS
            if now_ns - max(stamp.mtime_ns, stamp.ctime_ns) < margin:
                return False
    return True


def fnv1a(data: bytes) -> int:
    """Return the 64-bit FNV-1a hash (the parameters are those of draft-eastlake-fnv)."""
    value = 0xCBF29CE484222325
    for byte in data:
        value = ((value ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return value


def cache_path(
    variables: Mapping[str, str], cwd: str, request: str, config: str, uid: int, verb: str = "env"
) -> str | None:
    """Return where the record of `piolet VERB submit` for `request` is kept, or None: there is no place for a cache."""
    base = cache_base(variables)
    if base is None:
        return None
    key = os.fsencode(cwd) + b"\0" + os.fsencode(request) + b"\0" + os.fsencode(config) + b"\0" + str(uid).encode()
    return f"{base}/piolet/{verb}/{fnv1a(key):016x}.rec"


def cache_base(variables: Mapping[str, str]) -> str | None:
    """Return where a user's caches are, or None: XDG_CACHE_HOME and HOME count only if they are absolute."""
    cache, home = variables.get("XDG_CACHE_HOME", ""), variables.get("HOME", "")
    if cache.startswith("/"):
        return cache
    return f"{home}/.cache" if home.startswith("/") else None


def store(path: str, record: bytes) -> bool:
    """Write `record` to `path`, whole or not at all; return whether it is there now. Never raises OSError.

    Refuses a directory that is another user's or that others may write to.
    """
    directory = os.path.dirname(path)
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        status = os.stat(directory)
        if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o022:
            return False
        # Unique enough for the callers of one user, and tempfile takes milliseconds to import.
        temporary = f"{directory}/{_UNFINISHED}{os.getpid()}-{time.monotonic_ns()}"
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            with open(descriptor, "wb") as file:
                file.write(record)
            os.rename(temporary, path)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            return False
        _prune(directory)
    except OSError:
        return False
    return True


def _prune(directory: str) -> None:
    """Delete the oldest half of the records when there are too many; what else is there has other owners."""
    with os.scandir(directory) as entries:
        ours = [entry for entry in entries if entry.name.endswith(".rec") or entry.name.startswith(_UNFINISHED)]
        files = [entry for entry in ours if entry.is_file(follow_symlinks=False)]
    if len(files) <= CACHE_ENTRIES:
        return
    aged = []
    for entry in files:
        with contextlib.suppress(OSError):
            aged.append((entry.stat(follow_symlinks=False).st_mtime_ns, entry.path))
    for _, path in sorted(aged)[: len(files) - CACHE_ENTRIES // 2]:
        with contextlib.suppress(OSError):
            os.unlink(path)


def write_record(descriptor: int, record: bytes, timeout_s: float = WRITE_TIMEOUT_S) -> None:
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
