"""Trees of the kernel's files for sources, as public documents describe them; their numbers are made up."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from piolet.api import Place, Row, Source

SECOND = 10**9


def plant(root: Path, files: Mapping[str, str]) -> None:
    """Write files, by their paths on a node."""
    for path, text in files.items():
        place = root / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)


def opened(kind: type[Source], root: Path, *groups: tuple[str, str]) -> Source:
    """Return a source that is open."""
    source = kind()
    source.open(Place(root=str(root), groups=groups))
    return source


def told(source: Source, root: Path, after: Mapping[str, str], seconds: float = 10.0) -> list[Row]:
    """Return what a source tells when files have changed `seconds` after its first look."""
    assert source.read(SECOND) == [] or source.scope == "step"
    plant(root, after)
    return source.read(SECOND + round(seconds * SECOND))


def only(rows: list[Row]) -> dict[str, float | str]:
    """Return the values of the one row."""
    (row,) = rows
    return dict(row.values)
