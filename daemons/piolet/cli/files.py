"""Files that verbs write for their user."""

from __future__ import annotations

import os
from pathlib import Path

from piolet.base import files
from piolet.base.errors import ScoreError


def write(path: Path, content: bytes) -> None:
    """Write a file, which appears whole or not at all. Raises ScoreError."""
    try:
        files.write_whole(str(path), content, str(path.with_name(f".{path.name}.{os.getpid()}")))
    except OSError as error:
        raise ScoreError(f"cannot write {path}: {error.strerror}") from None
