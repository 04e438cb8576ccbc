"""Long lines in short pieces, for their way through Slurm.

slurmstepd forwards a task's output in messages of about a kilobyte; a longer line may arrive with another node's
output in the middle. So a long line travels as several lines of the kind 'part', each of which fits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable

from piolet.vet.runner import records

LINE_MAX = 1000
# Every character of a piece may need a second one when it is quoted.
_PIECE = 420
_PARTS_MAX = 2 * records.LINE_MAX // _PIECE


def split(line: bytes) -> bytes:
    """Return the same content in lines that are no longer than LINE_MAX; `line` is ASCII with a line end."""
    if len(line) <= LINE_MAX:
        return line
    text = line.rstrip(b"\n").decode("ascii")
    pieces = [text[at : at + _PIECE] for at in range(0, len(text), _PIECE)]
    name = hashlib.sha256(line).hexdigest()[:12]
    return b"".join(
        records.encode("part", {"id": name, "number": number, "of": len(pieces), "text": piece})
        for number, piece in enumerate(pieces)
    )


class Joiner:
    """Puts the parts together again. A part that is missing costs its line and no other."""

    def __init__(self) -> None:
        self._open: dict[Hashable, tuple[str, list[str]]] = {}

    def take(self, source: Hashable, line: bytes) -> bytes | None:
        """Return the line that is whole with this one, or None: it is a part and more have to come."""
        decoded = records.decode(line)
        if decoded is None or decoded[0] != "part":
            return line
        name, number, count, text = (decoded[1].get(key) for key in ("id", "number", "of", "text"))
        if not isinstance(name, str) or not isinstance(count, int) or not isinstance(text, str) or count > _PARTS_MAX:
            return None
        old, pieces = self._open.pop(source, ("", []))
        if number == 0:
            old, pieces = name, []
        if old != name or number != len(pieces):
            return None
        pieces.append(text)
        if len(pieces) < count:
            self._open[source] = (name, pieces)
            return None
        return "".join(pieces).encode("utf-8", "replace")
