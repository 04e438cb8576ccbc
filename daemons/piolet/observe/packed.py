"""Reads archives of short steps (observe/packing.py): `packed/DATE.zip`, with JOB.STEP[-rN]/FILE in it."""

from __future__ import annotations

import zipfile
from pathlib import Path

from piolet.base.errors import ObserveError


def member(archive: Path, name: str) -> bytes:
    """Return a file of an archive. Raises ObserveError; FileNotFoundError: it has none of that name."""
    try:
        with zipfile.ZipFile(archive) as opened:
            return opened.read(name)
    except KeyError:
        raise FileNotFoundError(name) from None
    except (OSError, zipfile.BadZipFile) as error:
        raise ObserveError(f"cannot read {archive}: {error}") from None


def members(archive: Path, directory: str) -> dict[str, int]:
    """Return the files of a step in an archive, and their sizes. Raises ObserveError."""
    try:
        with zipfile.ZipFile(archive) as opened:
            begin = f"{directory}/"
            return {
                one.filename.removeprefix(begin): one.file_size
                for one in opened.infolist() if one.filename.startswith(begin)
            }  # fmt: skip
    except (OSError, zipfile.BadZipFile) as error:
        raise ObserveError(f"cannot read {archive}: {error}") from None
