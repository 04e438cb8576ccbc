"""Files that only root can have written: those of a site's hooks and detectors, and of devices.

A path is trusted if root owns it and nobody else may write it, and the same holds for every directory above it.
"""

from __future__ import annotations

import importlib.util
import os
import stat
import sys
from typing import Any, TypeVar

Kind = TypeVar("Kind")


class UnusableError(Exception):
    """A file is not what it is meant to be; the text says why."""


def doubt(path: str) -> str:
    """Return why `path` is not to be believed, or ''. Links are followed. Raises OSError: it is not there."""
    real = os.path.realpath(path, strict=True)
    while True:
        status = os.stat(real)
        if status.st_uid != 0:
            return f"{real} does not belong to root"
        # A sticky directory (/tmp) lets nobody replace what is root's in it.
        if status.st_mode & 0o022 and not (stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX):
            return f"{real} can be written by others than root"
        if real == "/":
            return ""
        real = os.path.dirname(real)


def class_in(path: str, what: str, name: str, base: type[Kind]) -> type[Kind]:
    """Load a site's file, and return the one class in it that derives from `base` and is called `name`.

    what    "hook", "detector": what its module is called by, and errors speak of

    Raises UnusableError. Whether the file is to be believed is the caller's to ask first.
    """
    module_name = f"piolet_site_{what}_{name}"
    try:
        spec = importlib.util.spec_from_file_location(module_name, path)
        if spec is None or spec.loader is None:
            raise UnusableError(f"{path} is no Python file")
        module: Any = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module  # dataclasses look their module up
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a site's file does when it is loaded
        raise UnusableError(f"cannot load the {what} {path}: {said(error)}") from None
    kinds = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, base) and value.__module__ == module_name
    ]
    if len(kinds) != 1 or getattr(kinds[0], "name", "") != name:
        derives = f"derives from piolet.api.{base.__name__}"
        raise UnusableError(f"{path} must define one class that {derives} and is named '{name}'")
    return kinds[0]


def said(error: BaseException) -> str:
    """Return the first line of what an exception says."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
