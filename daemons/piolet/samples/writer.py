"""Writes a step's samples as the user: takes the sampler's frames from a pipe and puts them into the user's directory.

The sampler serves all users, so it never opens a path of theirs. This process is the user: it appends what comes to
NODE.journal, and when the pipe ends it makes the Parquet files. A directory that hangs costs this step its score and
nothing else, since the sampler never waits for the pipe; one that is full, the samples that do not fit (append.py).
Until the end it imports the standard library only.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator
from typing import Any

from piolet.base.errors import ScoreError
from piolet.samples.append import Appender
from piolet.samples.journal import SUFFIX, open_for_writing, read
from piolet.steps import identity

_PIECE = 1 << 16


def write(source: int, directory: str, node: str, step: str) -> str:
    """Copy the samples of a run of a step from the descriptor `source` until its end; return the path of the file.

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
        for piece in _pieces(source):
            appender.add(piece)
        appender.finish()
        # Until it is finished it stays locked.
        return finish(path) if _ended(path) else path
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


def finish(path: str) -> str:
    """Make the Parquet files of a journal and return the path of NODE.parquet. Raises ScoreError."""
    from pathlib import Path

    from piolet.samples import dataset

    return str(dataset.finish(Path(path)))
