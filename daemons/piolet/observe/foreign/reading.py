"""Reads files of others into the layout: finds out of which format they are, and writes a directory for each step."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType

from piolet.base.errors import ObserveError
from piolet.observe import writing
from piolet.observe.foreign import clustercockpit, dcgm, gssr, omnistat, pm_counters
from piolet.observe.foreign.common import NS, Asked, Step, content_of

READERS: tuple[ModuleType, ...] = (clustercockpit, dcgm, omnistat, pm_counters, gssr)
KINDS = tuple(reader.NAME for reader in READERS)
_TEXTS = (dcgm, omnistat, pm_counters)
_HEAD = 256 << 10
_NUMBERS = re.compile(r"([0-9]+)")


def read(paths: Sequence[Path], kind: str, asked: Asked) -> list[Step]:
    """Return the steps in files and directories of one format.

    kind    one of KINDS; "": what the first of them is

    Raises ObserveError: a file cannot be read, is of no known format, damaged, or does not say what is needed.
    """
    for path in paths:
        if not os.path.lexists(path):
            raise ObserveError(f"there is no {path}")
    reader = next(one for one in READERS if kind == one.NAME) if kind else _reader_of(paths[0])
    if reader in _TEXTS:
        paths = [file for path in paths for file in (_files_in(path) if path.is_dir() else [path])]
        if not paths:
            raise ObserveError("there is no file in the directory")
    steps: list[Step] = reader.read(paths, asked)
    return steps


def write(step: Step, root: Path) -> Path:
    """Write a step as ROOT/DATE/JOB.STEP, whole or not at all, and return that. Raises ObserveError: it is there."""
    day = datetime.fromtimestamp(step.meta["start"] / NS, UTC).date().isoformat()
    target = root / day / step.name
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    if os.path.lexists(target):
        raise _there(target)
    try:
        aside.mkdir(parents=True)
    except OSError as error:
        raise ObserveError(f"cannot make the directory {aside}: {error.strerror}") from None
    try:
        for table, rows in step.tables.items():
            writing.write_table(aside, table, rows)
        writing.write_meta(aside, step.meta)
        os.rename(aside, target)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
            raise _there(target) from None
        raise ObserveError(f"cannot make the directory {target}: {error.strerror}") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return target


def _there(target: Path) -> ObserveError:
    return ObserveError(f"{target} is there already", "remove it, or choose another --out")


def _files_in(directory: Path) -> list[Path]:
    """Return the files of a directory, numbers in names in their order."""
    found = [path for path in directory.iterdir() if path.is_file() and not path.name.startswith(".")]
    return sorted(
        found, key=lambda path: [int(part) if part.isdecimal() else part for part in _NUMBERS.split(path.name)]
    )


def _reader_of(path: Path) -> ModuleType:
    """Return the reader of a file or directory. Raises ObserveError."""
    if clustercockpit.is_one(path):
        return clustercockpit
    if path.suffix in (".json", ".csv"):
        return gssr
    first = path
    if path.is_dir():
        if gssr.is_one(path):
            return gssr
        first = next(iter(_files_in(path)), path)
    if first.is_dir():
        raise ObserveError(f"{path} holds no file of a format that is known", f"known are {', '.join(KINDS)}")
    head = content_of(first)[:_HEAD].decode("utf-8", "replace")
    for reader in _TEXTS:
        if reader.is_one(head):
            return reader
    raise ObserveError(
        f"{first} is of no format that is known", f"known are {', '.join(KINDS)}; choose one with --kind"
    )
