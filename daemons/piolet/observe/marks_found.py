"""Looks for marks in a user's files: output by patterns, TensorBoard's and W&B's by their formats, told by their names.

Runs as the user who asks, on files that the user names or that Slurm says are the job's. Everything is bounded: files,
bytes, marks and seconds; what was left out is said.
"""

from __future__ import annotations

import os
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from piolet.base import files
from piolet.base.errors import ConfigError, ObserveError
from piolet.observe import marks, marks_output, marks_tensorboard, marks_wandb
from piolet.observe.marks import OUTPUT, TENSORBOARD, WANDB, Said
from piolet.observe.marks_output import Finder

SETTINGS = "piolet/marks.toml"
_ENTRIES_MOST, _FILES_MOST, _DEEP_MOST = 20_000, 200, 8
_SETTINGS_MOST = 64 << 10


@dataclass
class Found:
    """Marks by origin, and sentences on what was left out."""

    said: dict[str, list[Said]] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)


def look(paths: Sequence[str], finder: Finder, seconds: float) -> Found:
    """Return the marks in files, and in those below directories. Raises ObserveError: a named one cannot be read."""
    deadline = time.monotonic() + seconds
    found = Found()
    for path in paths:
        below = os.path.isdir(path)
        for name in _below(path, found.left) if below else [path]:
            left = deadline - time.monotonic()
            if left <= 0:
                found.left.append(f"{name} and what comes after it were not read: {seconds:g} s had passed")
                return found
            try:
                _one(name, finder, left, found)
            except ObserveError as error:
                if not below:
                    raise
                found.left.append(error.message)
    return found


def _one(path: str, finder: Finder, seconds: float, found: Found) -> None:
    name = os.path.basename(path)
    if marks_tensorboard.NAMES in name:
        origin, (said, left) = TENSORBOARD, marks_tensorboard.find(path, seconds)
    elif name.endswith(marks_wandb.SUFFIX):
        origin, (said, left) = WANDB, marks_wandb.find(path, seconds)
    else:
        origin, (said, left) = OUTPUT, marks_output.find(path, finder, seconds)
    have = found.said.setdefault(origin, [])
    have += said[: max(0, marks.MOST - len(have))]
    found.left += [left] if left else []


def _below(top: str, left: list[str]) -> Iterator[str]:
    """Yield the files of TensorBoard and W&B below a directory; links are not followed."""
    seen = found = 0
    for place, directories, names in os.walk(top):
        if place.count(os.sep) - top.count(os.sep) >= _DEEP_MOST:
            directories.clear()
        directories.sort()
        for name in sorted(names):
            seen += 1
            path = os.path.join(place, name)
            wanted = marks_tensorboard.NAMES in name or name.endswith(marks_wandb.SUFFIX)
            if wanted and not os.path.islink(path):
                found += 1
                yield path
        if seen > _ENTRIES_MOST or found >= _FILES_MOST:
            left.append(f"{top} was not looked through: it has over {_ENTRIES_MOST} files, or {_FILES_MOST} of marks")
            return


def finder(site: Sequence[str], own: Sequence[str], variables: Mapping[str, str]) -> Finder:
    """Return what finds marks in output: by patterns of the command line, the user's, the site's, and the usual ones.

    Raises ConfigError: one of them is none, with where it stands.
    """
    return Finder([*own, *_of_user(variables), *site, *marks_output.USUAL])


def _of_user(variables: Mapping[str, str]) -> list[str]:
    home, config = variables.get("HOME", ""), variables.get("XDG_CONFIG_HOME", "")
    base = config if config.startswith("/") else f"{home}/.config" if home.startswith("/") else ""
    if not base:
        return []
    path = os.path.join(base, SETTINGS)
    try:
        text = files.read_small(path, _SETTINGS_MOST)[0].decode("utf-8")
        said = tomllib.loads(text)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except (OSError, files.NotRegularError) as error:
        raise ConfigError(f"cannot read {path}: {getattr(error, 'strerror', None) or 'it is no file'}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None
    patterns = said.get("patterns", [])
    if set(said) - {"patterns"} or not isinstance(patterns, list) or not all(isinstance(one, str) for one in patterns):
        raise ConfigError(f"{path} has something else than patterns", 'patterns = ["grad: (?P<grad>[0-9.]+)"]')
    return patterns
