"""A site's own detectors: one file NAME.py with one class each, in a directory that only root can write."""

from __future__ import annotations

import importlib.util
import os
import sys
from typing import Any, TypeVar

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
    if why and not (mine and status.st_uid == os.geteuid() != 0 and not status.st_mode & 0o022):
        raise ObserveError(f"the detector {path} is not loaded: {why}", "it is root's, as are the directories above it")
    module_name = f"piolet_site_detector_{name}"
    try:
        spec = importlib.util.spec_from_file_location(module_name, path)
        if spec is None or spec.loader is None:
            raise ObserveError(f"{path} is no Python file")
        module: Any = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module  # dataclasses look their module up
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a site's file does when it is loaded
        text = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise ObserveError(f"cannot load the detector {path}: {text}") from None
    kinds = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, base) and value.__module__ == module_name
    ]
    if len(kinds) != 1 or getattr(kinds[0], "name", "") != name:
        raise ObserveError(f"{path} must define one class that derives from piolet.api.Detector and is named '{name}'")
    return kinds[0]
