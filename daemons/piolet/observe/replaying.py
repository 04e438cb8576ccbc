"""Which steps there are below a directory of DATE/JOB.STEP, and what a data set for tests expects of detectors."""

from __future__ import annotations

import json
import re
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from piolet.base import files
from piolet.base.errors import ObserveError
from piolet.observe import layout
from piolet.observe.catalogue import PACKED

EXPECTED = "expected.json"
"""Beside a step's data, in a data set for tests: an object, name of a detector -> found, nothing, unknown."""
_MEMBER = re.compile(r"([0-9A-Za-z_+-][0-9A-Za-z_.+-]*)/([A-Za-z0-9_-]+\.[a-z]+)")
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
_STATES = ("found", "nothing", "unknown")


def root_of(root: Path) -> Path:
    """Return where steps are looked for. Raises ObserveError: there is no such directory, or it may not be read."""
    try:
        next(iter(root.iterdir()), None)
    except OSError as error:
        hint = "the data of all steps are where the central service is, and its account's; --dir names other ones"
        raise ObserveError(f"cannot read {root}: {error.strerror}", hint) from None
    return root


def steps_below(root: Path) -> Iterator[Path]:
    """Yield the directories of steps, in the order of days and names, then those that are packed.

    A packed one is unpacked, and gone when the next one is asked for. Raises ObserveError: an archive is damaged.
    """
    if (root / layout.META_FILE).is_file():
        yield root
        return
    for day in sorted(root.iterdir()):
        if _DATE.fullmatch(day.name) and day.is_dir():
            yield from sorted(step for step in day.iterdir() if (step / layout.META_FILE).is_file())
    for archive in sorted((root / PACKED).glob("*.zip")):
        yield from _unpacked(archive)


def _unpacked(archive: Path) -> Iterator[Path]:
    try:
        with zipfile.ZipFile(archive) as opened:
            members: dict[str, list[str]] = {}
            for name in opened.namelist():
                if match := _MEMBER.fullmatch(name):
                    members.setdefault(match[1], []).append(name)
            for step, names in sorted(members.items()):
                with tempfile.TemporaryDirectory(prefix="piolet-replay.") as top:
                    for name in names:
                        opened.extract(name, Path(top) / archive.stem)
                    yield Path(top) / archive.stem / step
    except (OSError, zipfile.BadZipFile) as error:
        raise ObserveError(f"cannot read {archive}: {error}") from None


def step_directory(said: str, root: Path) -> Path:
    """Return the directory that a path or JOB.STEP means: the latest of that name. Raises ObserveError."""
    if "/" in said or Path(said).is_dir():
        return Path(said)
    if not re.fullmatch(r"[0-9A-Za-z_.+-]+", said):
        raise ObserveError(f"'{said}' is neither a directory nor JOB.STEP")
    found = [path for path in steps_below(root_of(root)) if path.name == said]
    if not found:
        raise ObserveError(f"there are no data of step {said} below {root}", "--dir names another directory")
    return found[-1]


def expected(directory: Path, detector: str) -> str:
    """Return what a data set expects of a detector in a step, '' where it does not say. Raises ObserveError."""
    path = directory / EXPECTED
    try:
        said = json.loads(files.read_small(str(path), 1 << 16)[0])
    except FileNotFoundError:
        return ""
    except (OSError, ValueError, RecursionError, files.NotRegularError) as error:
        raise ObserveError(f"cannot read {path}: {error}") from None
    value = said.get(detector, "") if isinstance(said, Mapping) else None
    if value not in ("", *_STATES):
        raise ObserveError(f"{path}: of {detector} is expected {', '.join(_STATES)}, not {value!r}")
    return str(value)
