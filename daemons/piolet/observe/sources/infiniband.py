"""InfiniBand and RoCE: counters of each port and of its hardware.

Linux, ABI/stable/sysfs-class-infiniband: port_rcv_data and port_xmit_data count words of four bytes. NVIDIA,
"Understanding mlx5 Linux counters": hw_counters of what had to be sent again. `errors`: symbols, packets with errors,
links that had to be trained anew; `retries`: acknowledgements that did not come, packets out of order at the other end,
and receivers that were not ready, as far as the driver has them.
"""

from __future__ import annotations

import re
from typing import ClassVar

from piolet.api import NET, Place, Rates, Row, Source, Unavailable

_CLASS = "/sys/class/infiniband"
_WORD = 4.0
_ERRORS = ("symbol_error", "port_rcv_errors", "link_error_recovery")
_RETRIES = ("local_ack_timeout_err", "packet_seq_err", "rnr_nak_retry_err")
_RATE = re.compile(r"([\d.]+) Gb/sec")


class Infiniband(Source):
    """The source."""

    name = "infiniband"
    text = "InfiniBand and RoCE: bytes, errors and retries of each port, of the node"
    table = NET
    columns: ClassVar[tuple[str, ...]] = ("kind", "rate", "rx", "tx", "errors", "retries")

    def __init__(self) -> None:
        super().__init__()
        self._ports: tuple[str, ...] = ()
        self._rates = Rates(self)

    def open(self, place: Place) -> None:
        """Begin; see Source."""
        super().open(place)
        found = [f"{c}/ports/{port}" for c in place.names(_CLASS) for port in place.names(f"{_CLASS}/{c}/ports")]
        self._ports = tuple(port for port in found if place.names(f"{_CLASS}/{port}/counters"))
        if not self._ports:
            raise Unavailable("its ports have no counters" if found else "there is no InfiniBand")
        if not any(set(_RETRIES) & set(place.names(f"{_CLASS}/{port}/hw_counters")) for port in self._ports):
            self.never["retries"] = "the driver has no hw_counters of them"

    def read(self, now: int) -> list[Row]:
        """Return a row for each port that is up; see Source."""
        rows, seen = [], set()
        for port in self._ports:
            where = f"{_CLASS}/{port}"
            subject = port.replace("/ports/", "/")
            if "ACTIVE" not in self.place.word(f"{where}/state"):
                continue
            seen.add(subject)
            counters: dict[str, float] = {}
            for column, name in (("rx", "port_rcv_data"), ("tx", "port_xmit_data")):
                try:
                    counters[column] = self.place.number(f"{where}/counters/{name}") * _WORD
                except (OSError, ValueError, IndexError) as error:
                    self.blank(f"{column}: {error}"[:120], subject)
            for column, part, names in (("errors", "counters", _ERRORS), ("retries", "hw_counters", _RETRIES)):
                if (value := self._sum(f"{where}/{part}", names)) is not None:
                    counters[column] = value
            if rates := self._rates.of(subject, now, counters):
                match = _RATE.search(self.place.word(f"{where}/rate"))
                rate = {"rate": float(match[1]) * 1e9 / 8} if match else {}
                rows.append(Row(subject, {"kind": "infiniband", **rate, **rates}))
        self._rates.keep(seen)
        return rows

    def _sum(self, directory: str, names: tuple[str, ...]) -> float | None:
        """Return the sum of those counters that there are; None: there is none."""
        total: float | None = None
        for name in names:
            try:
                total = (total or 0.0) + self.place.number(f"{directory}/{name}")
            except (OSError, ValueError, IndexError):
                continue
        return total
