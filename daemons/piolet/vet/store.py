"""Small JSON files of a user, written whole or not at all, read without trust."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from typing import Any

from piolet.base import files
from piolet.base.errors import VetError

_SIZE_MAX = 64 << 20


def write(path: str, value: Any) -> None:
    """Write `value` to `path` by way of a temporary file beside it. Raises VetError."""
    directory = os.path.dirname(path) or "."
    unfinished = ""
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        descriptor, unfinished = tempfile.mkstemp(prefix=".piolet-", dir=directory)
        with open(descriptor, "w", encoding="utf-8") as file:
            json.dump(value, file, sort_keys=True, indent=1)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
            os.fchmod(file.fileno(), 0o644)
        os.replace(unfinished, path)
    except OSError as error:
        if unfinished and os.path.exists(unfinished):
            os.unlink(unfinished)
        raise VetError(f"cannot write {path}: {error.strerror}") from None


def read(path: str) -> dict[str, Any] | None:
    """Return the table in `path`, or None: it is not there, not readable, or not ours."""
    try:
        with open(path, encoding="utf-8") as file:
            if os.fstat(file.fileno()).st_size > _SIZE_MAX:
                return None
            value = json.load(file)
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def cache_directory(environ: Mapping[str, str]) -> str:
    """Return where a user's caches of vetting are; without a place for them nothing can be written there."""
    return files.cache_directory(environ, "vet") or "/nonexistent/piolet/vet"
