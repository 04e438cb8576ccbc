"""NFS: what each mount moved and how long its calls took, from mountstats; of all that runs on the node.

fs/nfs/super.c and net/sunrpc/stats.c: `bytes:` has normal reads and writes, direct reads and writes, and what came from
and went to the server; a line of "per-op statistics" has calls, transmissions, timeouts, bytes out and in, and
milliseconds in the queue, on the way, and altogether. Mounts of one export share their numbers, so one of them is told.
"""

from __future__ import annotations

import re
from typing import ClassVar

from piolet.api import IO, Place, Rates, Row, Source, Unavailable

from ._mounts import plain

_FILE = "/proc/self/mountstats"
_DEVICE = re.compile(r"device (\S+) mounted on (\S+) with fstype (nfs4?)(?: statvers=([\d.]+))?")
_OPERATION = re.compile(r"\s*([A-Z_]+): ([\d ]+)")


class Nfs(Source):
    """The source."""

    name = "nfs"
    text = "NFS, per mount, of the node"
    table = IO
    columns: ClassVar[tuple[str, ...]] = (
        "kind", "scope", "read", "write", "read_operations", "write_operations", "metadata_operations", "wait",
    )  # fmt: skip
    needs: ClassVar[tuple[str, ...]] = (_FILE,)

    def __init__(self) -> None:
        super().__init__()
        self._rates = Rates(self)

    def open(self, place: Place) -> None:
        """Begin; see Source."""
        super().open(place)
        try:
            found = counters_of(place.held_text(_FILE))
        except OSError as error:
            raise Unavailable(f"{_FILE} cannot be read: {error.strerror}") from None
        if not found:
            raise Unavailable("no NFS is mounted")

    def read(self, now: int) -> list[Row]:
        """Return a row for each mount; see Source."""
        rows = []
        found = counters_of(self.place.held_text(_FILE))
        for point, counters in found.items():
            gained = self._rates.gained(point, now, counters)
            span = self._rates.span
            spent, calls = gained.pop("spent", 0.0), sum(v for name, v in gained.items() if name.endswith("operations"))
            values: dict[str, float | str] = {name: value / span for name, value in gained.items()}
            if calls:
                values["wait"] = spent / calls
            if values:
                rows.append(Row(point, {"kind": "nfs", "scope": "node", **values}))
        self._rates.keep(set(found))
        return rows


def counters_of(text: str) -> dict[str, dict[str, float]]:
    """Return the counters by mount point: the layout's columns, and `spent`, the seconds of all calls."""
    found: dict[str, dict[str, float]] = {}
    known: set[tuple[str, ...]] = set()
    for part in re.split(r"^(?=device )", text, flags=re.MULTILINE):
        match = _DEVICE.match(part)
        moved = re.search(r"^\s*bytes:\s*([\d ]+)", part, re.MULTILINE)
        if match is None or moved is None:
            continue
        same = match[1], moved[1]
        if same in known:
            continue
        known.add(same)
        fields = [float(word) for word in moved[1].split()]
        if len(fields) < 6:
            continue
        counters = {"read": fields[4], "write": fields[5], "metadata_operations": 0.0, "spent": 0.0}
        for name, numbers in _OPERATION.findall(part.partition("per-op statistics")[2]):
            calls = [float(word) for word in numbers.split()]
            if len(calls) < 8:
                continue
            kind = {"READ": "read_operations", "WRITE": "write_operations"}.get(name, "metadata_operations")
            counters[kind] = counters.get(kind, 0.0) + calls[0]
            counters["spent"] += calls[7] / 1e3
        found[plain(match[2])] = counters
    return found
