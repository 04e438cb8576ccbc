"""Short steps of a day in one archive: `packed/DATE.zip`, whose members are their directories' files.

A step of a minute has files of some kilobytes, and a site has thousands of them a day. An archive is made anew whole,
with what it had; a directory is removed after the catalogue says that the archive has it. Nobody reads another's
member through it: it is read by the central service's account alone, and each step by itself.
"""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path

from piolet.base import files
from piolet.base.errors import ObserveError
from piolet.observe.catalogue import PACKED, Catalogue, Row


def pack(catalogue: Catalogue, day: str, rows: Sequence[Row]) -> None:
    """Put the directories of a day's steps into its archive. Raises ObserveError."""
    root = catalogue.root
    target = root / PACKED / f"{day}.zip"
    aside = f"{target}.new"
    try:
        target.parent.mkdir(exist_ok=True)
        with files.replacing(str(target), aside):
            with zipfile.ZipFile(aside, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
                names = _copied(target, archive)
                for row in rows:
                    inside = row.path.rpartition("/")[2]
                    for path in sorted((root / row.path).iterdir()):
                        if f"{inside}/{path.name}" not in names:
                            archive.write(path, f"{inside}/{path.name}")
            with open(aside, "rb") as file:
                os.fsync(file.fileno())
        with catalogue.transaction():
            for row in rows:
                catalogue.change(row, packed=str(target.relative_to(root)))
        for row in rows:
            shutil.rmtree(root / row.path)
    except (OSError, zipfile.BadZipFile) as error:
        raise ObserveError(f"steps of {day} cannot be packed: {error}") from None


def _copied(source: Path, archive: zipfile.ZipFile) -> set[str]:
    """Copy what an archive has already; return the names."""
    if not source.exists():
        return set()
    with zipfile.ZipFile(source) as before:
        for name in before.namelist():
            archive.writestr(name, before.read(name))
        return set(before.namelist())
