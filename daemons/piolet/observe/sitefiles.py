"""A site's own detectors: one file NAME.py with one class each, in a directory that only root can write."""

from __future__ import annotations

import os
from typing import TypeVar

from piolet.base.errors import ObserveError
from piolet.hooks import trusted

Kind = TypeVar("Kind")


def names(directory: str) -> list[str]:
    """Return the names of the files; nothing of them is loaded."""
    try:
        return sorted(name[:-3] for name in os.listdir(directory) if name.endswith(".py") and name[0] not in "._")
    except OSError:
        return []  # none there, or not ours to see


def load(path: str, name: str, base: type[Kind], mine: bool = False) -> type[Kind]:
    """Return the one class of a file that derives from `base` and is called `name`. Raises ObserveError.

    mine    a file of who runs this is believed, too, if nobody else may write it: who tries one that is not installed
    """
    try:
        why = trusted.doubt(path)
        status = os.stat(path)
    except OSError as error:
        raise ObserveError(f"cannot read the detector {path}: {error.strerror}") from None
    own = mine and status.st_uid == os.geteuid() != 0
    if why and own and status.st_mode & 0o022:
        raise ObserveError(f"the detector {path} is not loaded: others can write it", f"chmod go-w {path}")
    if why and not own:
        raise ObserveError(f"the detector {path} is not loaded: {why}", "it is root's, as are the directories above it")
    try:
        return trusted.class_in(path, "detector", name, base)
    except trusted.UnusableError as error:
        raise ObserveError(str(error)) from None
