"""HPE Slingshot's network cards (Cassini): telemetry in sysfs, and the retry handler's files.

Names are those of HPE's cassini_cntr_desc.h and of the "HPE Slingshot Host Software Troubleshooting Guide" (shs-docs on
GitHub); a value of telemetry has its time behind an "@". `errors`: codewords that could not be corrected, and what the
retry handler of the card gave up on (timeouts in /run/cxi). `retries`: packets that it had sent again.
"""

from __future__ import annotations

from typing import ClassVar

from piolet.api import NET, Place, Rates, Row, Source, Unavailable

from ._ports import speed

_CLASS, _HANDLER = "/sys/class/cxi", "/run/cxi"
_TELEMETRY = {
    "rx": ("hni_sts_rx_ok_octets",),
    "tx": ("hni_sts_tx_ok_octets",),
    "errors": ("hni_pcs_uncorrected_cw",),
    "retries": ("pct_retry_srb_requests",),
}
_GIVEN_UP = ("spt_timeouts", "sct_timeouts", "tct_timeouts")


class Cxi(Source):
    """The source."""

    name = "cxi"
    text = "Slingshot: bytes, errors and retries of each port, of the node"
    table = NET
    columns: ClassVar[tuple[str, ...]] = ("kind", "rate", "rx", "tx", "errors", "retries")

    def __init__(self) -> None:
        super().__init__()
        self._ports: tuple[str, ...] = ()
        self._rates = Rates(self)

    def open(self, place: Place) -> None:
        """Begin; see Source."""
        super().open(place)
        cards = place.names(_CLASS)
        self._ports = tuple(card for card in cards if place.names(f"{_CLASS}/{card}/device/telemetry"))
        if not self._ports:
            raise Unavailable("the driver of Slingshot gives no telemetry" if cards else "there is no Slingshot")
        if not any(set(_GIVEN_UP) & set(place.names(f"{_HANDLER}/{card}")) for card in self._ports):
            self.never["errors"] = f"without timeouts: the retry handler's files in {_HANDLER} cannot be read"

    def read(self, now: int) -> list[Row]:
        """Return a row for each port; see Source."""
        rows = []
        for card in self._ports:
            counters: dict[str, float] = {}
            for column, names in _TELEMETRY.items():
                try:
                    counters[column] = sum(self.place.number(f"{_CLASS}/{card}/device/telemetry/{n}") for n in names)
                except (OSError, ValueError, IndexError) as error:
                    self.blank(f"{column}: {error}"[:120], card)
            if "errors" in counters:
                counters["errors"] += self._given_up(card)
            rates = self._rates.of(card, now, counters)
            if rates:
                rows.append(Row(card, {"kind": "cxi", **speed(self.place, f"{_CLASS}/{card}/device/net"), **rates}))
        return rows

    def _given_up(self, card: str) -> float:
        total = 0.0
        for name in _GIVEN_UP:
            try:
                total += self.place.number(f"{_HANDLER}/{card}/{name}")
            except (OSError, ValueError, IndexError):
                continue
        return total
