"""Libraries in directories that a user has mounted are found by the dynamic loader."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from piolet.api import Asked, Entry, Hook, Node, Program, Refused, Step

_SECONDS = 15.0


class LdCache(Hook):
    """Run the image's own ldconfig before the tasks, with further directories."""

    name = "ldcache"
    text = "have the dynamic loader find libraries in mounted directories: the image's ldconfig runs once"
    source = "sarus-suite, ldcache_hook; read 2026-11-29. Ours runs as the user, in the step"
    options: ClassVar[dict[str, str]] = {"folders": "directories of the container with libraries, separated by colons"}

    def check(self, asked: Asked) -> None:
        """Only absolute paths."""
        for folder in _folders(asked):
            if not folder.startswith("/"):
                raise Refused(f"'{folder[:200]}' is not an absolute path", "folders are separated by colons")

    def entries(self, asked: Asked, node: Node, step: Step) -> Iterable[Entry]:
        """The program is the image's: where it has none (Alpine's loader has no cache) the step says so."""
        return [Program(("/sbin/ldconfig", *_folders(asked)), _SECONDS, failure="is there no ldconfig in the image?")]


def _folders(asked: Asked) -> tuple[str, ...]:
    return tuple(folder for folder in asked.options.get("folders", "").split(":") if folder)
