"""Writes a step's samples as the user: takes the sampler's frames from a pipe and puts them into the user's directory.

The sampler serves all users, so it never opens a path of theirs. This process is the user: it appends what comes to
NODE.journal, and when the pipe ends it makes the Parquet files. A directory that hangs or is full costs this step its
score and nothing else: the sampler never waits for the pipe. Until the end it imports the standard library only.
"""

from __future__ import annotations

import os

from piolet.score.failures import ScoreError
from piolet.score.journal import SUFFIX, open_for_writing

_PIECE = 1 << 16


def write(source: int, directory: str, node: str) -> str:
    """Copy from the descriptor `source` until its end, and return the path of the finished file.

    Raises ScoreError: the directory cannot be made, the journal cannot be written or finished. The journal then
    holds all that was written, and every reader takes it as it is.
    """
    if "/" in node or node in ("", ".", ".."):
        raise ScoreError(f"'{node}' cannot be the name of a node")
    path = os.path.join(directory, node + SUFFIX)
    try:
        os.makedirs(directory, 0o755, exist_ok=True)
    except OSError as error:
        raise ScoreError(f"cannot make the directory {directory}: {error.strerror}") from None
    target = open_for_writing(path)
    try:
        os.set_blocking(target, True)
        while piece := os.read(source, _PIECE):
            while piece:
                piece = piece[os.write(target, piece) :]
    except OSError as error:
        raise ScoreError(f"cannot write {path}: {error.strerror}") from None
    finally:
        os.close(target)
    return finish(path)


def finish(path: str) -> str:
    """Make the Parquet files of a journal and return the path of NODE.parquet. Raises ScoreError."""
    from pathlib import Path

    from piolet.score import dataset

    return str(dataset.finish(Path(path)))
