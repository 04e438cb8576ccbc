"""Writes a step's samples as the user: takes the sampler's frames from a pipe and puts them into the user's directory.

The sampler serves all users, so it never opens a path of theirs. This process is the user: it appends what comes to
NODE.journal, and when the pipe ends it makes the Parquet files. A directory that hangs costs this step its score and
nothing else, since the sampler never waits for the pipe; one that is full, the samples that do not fit (append.py).
What a step leaves on a node is bounded: compact.py. Until then, and until the end, it imports the standard library
only.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import select
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from piolet.base.errors import ScoreError
from piolet.samples.append import Appender
from piolet.samples.journal import SUFFIX, end_frame, open_for_writing, read
from piolet.steps import identity

if TYPE_CHECKING:
    from piolet.samples.dataset import Node

_PIECE = 1 << 16
log = logging.getLogger("pioletd.keeper")
Summary = Callable[["Node"], bytes]


def write(source: int, directory: str, node: str, step: str, bound: int, summary: Callable[[], Summary]) -> str:
    """Copy the samples of a run of a step from the descriptor `source` until its end; return the path of the file.

    bound      bytes that the journal may have
    summary    returns what makes the sums of a node's samples; called when they are needed

    If the step has ended by then, that is a Parquet file; if only its sampler has, the journal, which the next sampler
    goes on with. Raises ScoreError: the directory holds another step's samples, cannot be made, the journal cannot be
    written or finished. The journal then holds all that was written, and every reader takes it as it is.
    """
    if "/" in node or node in ("", ".", ".."):
        raise ScoreError(f"'{node}' cannot be the name of a node")
    path = os.path.join(directory, node + SUFFIX)
    try:
        os.makedirs(directory, 0o755, exist_ok=True)
    except OSError as error:
        raise ScoreError(f"cannot make the directory {directory}: {error.strerror}") from None
    if os.path.exists(os.path.join(directory, f"{node}.parquet")):
        raise ScoreError(f"{directory} holds the data set of a step that has ended")

    def refuse_another(header: dict[str, Any]) -> None:
        # Two steps in one data set would be neither's.
        if identity.run_name(header["job"], header["step"], header.get("restarts", 0)) != step:
            raise ScoreError(f"{directory} holds the data set of another step")

    target = open_for_writing(path, refuse_another)
    try:
        os.set_blocking(target, True)
        appender = Appender(target)
        most = bound
        for piece in _pieces(source):
            appender.add(piece)
            if appender.size > most:
                target = _bounded(appender, path, bound, summary)
                most = max(bound, appender.size + bound // 2)
        appender.finish()
        # Until it is finished it stays locked.
        if not _ended(path):
            return path
        make = summary()
        _leave_summary(target, path, make)
        return finish(path, make)
    except OSError as error:
        raise ScoreError(f"cannot write {path}: {error.strerror}") from None
    finally:
        os.close(target)


def _pieces(source: int) -> Iterator[bytes]:
    """Yield what comes, until the other side has ended or, at SIGTERM, until nothing more is there.

    A sampler that the kernel does not let go of keeps its side open, and its keeper then sends that signal.
    """
    woken, wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    before = signal.signal(signal.SIGTERM, lambda *_: os.write(wake, b"!"))
    try:
        while ready := select.select([source, woken], [], [])[0]:
            if source in ready:
                if not (piece := os.read(source, _PIECE)):
                    return
                yield piece
            elif woken in ready:
                return
    finally:
        signal.signal(signal.SIGTERM, before)
        os.close(woken)
        os.close(wake)


def _ended(path: str) -> bool:
    return any(each.kind == "E" and each.json()["event"] == "end" for each in read(path))


def _bounded(appender: Appender, path: str, bound: int, summary: Callable[[], Summary]) -> int:
    """Make a journal smaller, and return its descriptor; where that cannot be done it grows on.

    A process of its own does it: what it imports for that is gone with it.
    """
    unfinished = os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.{os.getpid()}")
    flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(unfinished, flags, 0o644)
    except OSError as error:
        log.warning("%s is larger than it should be: %s", path, error.strerror)
        return appender.fd
    with contextlib.suppress(OSError):  # not every network file system has locks
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            from piolet.samples.compact import compact

            compact(Path(path), fd, bound, summary())
            os.rename(unfinished, path)
            status = 0
        except (OSError, ScoreError) as error:
            log.warning("%s is larger than it should be: %s", path, error)
        finally:
            os._exit(status)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
        appender.move(fd)
    else:
        os.close(fd)
        with contextlib.suppress(OSError):
            os.unlink(unfinished)
    return appender.fd


def _leave_summary(target: int, path: str, make: Summary) -> None:
    """Write the sums of all samples behind the end mark: srun's screen is made of these, and waits for no Parquet."""
    from piolet.samples.dataset import Node
    from piolet.samples.journals import known_of, summary_frame

    known = known_of(Path(path))
    if known is not None and (node := Node(Path(path), *known)) and not node.is_summed:
        place = os.fstat(target).st_size
        left = summary_frame(node.facts, make(node)) + end_frame(place)
        try:
            while left:
                left = left[os.write(target, left) :]
        except OSError:
            os.ftruncate(target, place)  # there is no room: whoever wants the sums makes them


def finish(path: str, summary: Summary) -> str:
    """Make the Parquet files of a journal and return the path of NODE.parquet. Raises ScoreError."""
    from piolet.samples import dataset

    return str(dataset.finish(Path(path), summary))
