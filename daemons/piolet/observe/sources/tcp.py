"""TCP segments that the node sent again: RetransSegs of /proc/net/snmp (RFC 4022, tcpRetransSegs)."""

from __future__ import annotations

from typing import ClassVar

from piolet.api import Place, Rates, Row, Source, Unavailable

_FILE = "/proc/net/snmp"


class Tcp(Source):
    """The source."""

    name = "tcp"
    text = "TCP segments that were sent again, of the node"
    columns: ClassVar[tuple[str, ...]] = ("retransmits",)

    def __init__(self) -> None:
        super().__init__()
        self._rates = Rates(self)

    def open(self, place: Place) -> None:
        """Begin; see Source."""
        super().open(place)
        try:
            retransmitted(place.text(_FILE))
        except (OSError, ValueError) as error:
            raise Unavailable(f"{_FILE} does not tell them: {error}") from None

    def read(self, now: int) -> list[Row]:
        """Return one row; see Source."""
        rates = self._rates.of("", now, {"retransmits": retransmitted(self.place.text(_FILE))})
        return [Row("", rates)] if rates else []


def retransmitted(text: str) -> float:
    """Return RetransSegs in the text of /proc/net/snmp. Raises ValueError: it is not there."""
    lines = [line.split() for line in text.splitlines() if line.startswith("Tcp:")]
    if len(lines) < 2 or "RetransSegs" not in lines[0]:
        raise ValueError("there is no RetransSegs")
    return float(lines[1][lines[0].index("RetransSegs")])
