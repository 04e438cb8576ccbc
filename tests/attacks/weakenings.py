"""The checks that are removed to show that an attack can succeed: by name, the file, and what replaces what in it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Weakening:
    """`changes` in `file` (a path from the top of the repository, below daemons/): pairs of a text that is there once,
    and what stands in its place."""

    file: str
    changes: tuple[tuple[str, str], ...]


WEAKENINGS: dict[str, Weakening] = {}
