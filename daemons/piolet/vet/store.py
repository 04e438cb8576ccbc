"""Small JSON files of a user, written whole or not at all, read without trust."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from piolet.base import files
from piolet.base.errors import VetError

_SIZE_MAX = 64 << 20


def write(path: str, value: Any) -> None:
    """Write `value` to `path` by way of a temporary file beside it. Raises VetError."""
    directory = os.path.dirname(path) or "."
    text = json.dumps(value, sort_keys=True, indent=1) + "\n"
    # Other nodes may write in the same directory at the same moment.
    aside = os.path.join(directory, f".piolet-{os.urandom(8).hex()}")
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        files.write_whole(path, text.encode(), aside, mode=0o644, exclusive=True, sync=True)
    except OSError as error:
        raise VetError(f"cannot write {path}: {error.strerror}") from None


def read(path: str) -> dict[str, Any] | None:
    """Return the table in `path`, or None: it is not there, not readable, or not ours."""
    try:
        data, _ = files.read_small(path, _SIZE_MAX)
        value = json.loads(data.decode("utf-8")) if len(data) <= _SIZE_MAX else None
    except (OSError, files.NotRegularError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def cache_directory(environ: Mapping[str, str]) -> str:
    """Return where a user's caches of vetting are; without a place for them nothing can be written there."""
    return files.cache_directory(environ, "vet") or "/nonexistent/piolet/vet"
