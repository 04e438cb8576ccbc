"""Local file systems on block devices, per mount, from diskstats; of all that runs on the node.

Linux, admin-guide/iostats.rst: reads, of them merged, sectors of 512 bytes, milliseconds; the same of writes. A file
system on several devices is counted where the kernel counts its own (a mapping, a partition). Of several mounts of one
device the first is told.
"""

from __future__ import annotations

from typing import ClassVar

from piolet.api import IO, Place, Rates, Row, Source, Unavailable

from ._mounts import mounts

_SECTOR = 512
_MOUNTS_MAX = 32
_NOT = ("squashfs", "iso9660")  # images: what is read of them is read from the file system that they are in


class Disks(Source):
    """The source."""

    name = "disks"
    text = "local file systems on block devices, per mount, of the node"
    table = IO
    columns: ClassVar[tuple[str, ...]] = (
        "kind",
        "scope",
        "read",
        "write",
        "read_operations",
        "write_operations",
        "wait",
    )

    def __init__(self) -> None:
        super().__init__()
        self._rates = Rates(self)

    def open(self, place: Place) -> None:
        """Begin; see Source."""
        super().open(place)
        if not self._devices():
            raise Unavailable("no file system is mounted from a block device")

    def _devices(self) -> dict[str, tuple[str, str]]:
        """Return mount point and type by device."""
        there = {tuple(line.split()[:2]) for line in self.place.text("/proc/diskstats").splitlines()}
        found: dict[str, tuple[str, str]] = {}
        for mount in mounts(self.place):
            if mount.kind not in _NOT and tuple(mount.device.split(":")) in there and len(found) < _MOUNTS_MAX:
                found.setdefault(mount.device, (mount.point, mount.kind))
        return found

    def read(self, now: int) -> list[Row]:
        """Return a row for each mount; see Source."""
        devices, rows = self._devices(), []
        for line in self.place.text("/proc/diskstats").splitlines():
            fields = line.split()
            known = devices.get(":".join(fields[:2]))
            if known is None or len(fields) < 11:
                continue
            numbers = [float(field) for field in fields[3:11]]
            counters = {
                "read": numbers[2] * _SECTOR, "write": numbers[6] * _SECTOR, "read_operations": numbers[0],
                "write_operations": numbers[4], "spent": (numbers[3] + numbers[7]) / 1e3,
            }  # fmt: skip
            gained = self._rates.gained(known[0], now, counters)
            span, spent = self._rates.span, gained.pop("spent", None)
            calls = gained.get("read_operations", 0.0) + gained.get("write_operations", 0.0)
            values: dict[str, float | str] = {name: value / span for name, value in gained.items()}
            if calls and spent is not None:
                values["wait"] = spent / calls
            if values:
                rows.append(Row(known[0], {"kind": known[1], "scope": "node", **values}))
        self._rates.keep({point for point, _ in devices.values()})
        return rows
