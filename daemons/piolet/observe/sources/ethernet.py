"""Ethernet: bytes and errors of each network device that is hardware, as the kernel's network stack counts them.

Linux, ABI/testing/sysfs-class-net-statistics. What programs send past that stack (RoCE, Slingshot) is not in it; the
devices of those cards are told by their own sources as well.
"""

from __future__ import annotations

from typing import ClassVar

from piolet.api import NET, Place, Rates, Row, Source, Unavailable

_CLASS = "/sys/class/net"


class Ethernet(Source):
    """The source."""

    name = "ethernet"
    text = "network devices: bytes and errors, of the node"
    table = NET
    columns: ClassVar[tuple[str, ...]] = ("kind", "rate", "rx", "tx", "errors")

    def __init__(self) -> None:
        super().__init__()
        self._rates = Rates(self)

    def open(self, place: Place) -> None:
        """Begin; see Source."""
        super().open(place)
        if not self._devices():
            raise Unavailable("no network device is hardware, as in a container or a namespace of its own")

    def _devices(self) -> list[str]:
        """Return devices that are hardware: what goes through a bond or a VLAN goes through one of them as well."""
        found = []
        for name in self.place.names(_CLASS):
            there = self.place.names(f"{_CLASS}/{name}/device")
            if there and "physfn" not in there:  # what virtual functions move, goes through the port that they are of
                found.append(name)
        return found

    def read(self, now: int) -> list[Row]:
        """Return a row for each device that is up; see Source."""
        rows, seen = [], set()
        for name in self._devices():
            where = f"{_CLASS}/{name}/statistics"
            if self.place.word(f"{_CLASS}/{name}/operstate") not in ("up", "unknown"):
                continue
            seen.add(name)
            try:
                counters = {"rx": self.place.number(f"{where}/rx_bytes"), "tx": self.place.number(f"{where}/tx_bytes")}
                counters["errors"] = sum(self.place.number(f"{where}/{way}_errors") for way in ("rx", "tx"))
            except (OSError, ValueError, IndexError) as error:
                self.blank(str(error)[:120], name)
                continue
            if rates := self._rates.of(name, now, counters):
                word = self.place.word(f"{_CLASS}/{name}/speed")
                rate = {"rate": int(word) * 1e6 / 8} if word.isdecimal() and int(word) > 0 else {}
                rows.append(Row(name, {"kind": "ethernet", **rate, **rates}))
        self._rates.keep(seen)
        return rows
