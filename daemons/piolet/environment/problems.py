"""All that is wrong with definition files, said at once: who has to mend a file wants to do it once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from piolet.base.errors import EnvironmentFileError, ImageError, PioletError

MOST = 20


class Problems:
    """Errors that were found so far, MOST at most."""

    def __init__(self) -> None:
        self._found: list[PioletError] = []

    def __bool__(self) -> bool:
        return bool(self._found)

    @contextmanager
    def gather(self) -> Iterator[None]:
        """Keep an error of the block, which ends there. Raises PioletError when there are too many."""
        try:
            yield
        except (EnvironmentFileError, ImageError) as error:
            if any(error is one for one in self._found):  # raised by `report` below
                raise
            self._found.append(error)
            if len(self._found) >= MOST:
                self.report()

    def report(self) -> None:
        """Raise the first error with the others, by file and line; do nothing if there is none."""
        if not self._found:
            return
        paths = list(dict.fromkeys(error.location.path for error in self._found if error.location))

        def place(error: PioletError) -> tuple[int, int, int]:
            at = error.location
            return (-1, 0, 0) if at is None else (paths.index(at.path), at.line, at.column)

        first, *others = sorted(self._found, key=place)
        first.others = tuple(others)
        raise first
