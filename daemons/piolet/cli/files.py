"""Files that verbs write for their user."""

from __future__ import annotations

import os
from pathlib import Path

from piolet.base.errors import ScoreError


def write(path: Path, content: bytes) -> None:
    """Write a file, which appears whole or not at all. Raises ScoreError."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_bytes(content)
        unfinished.rename(path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise ScoreError(f"cannot write {path}: {error.strerror}") from None
