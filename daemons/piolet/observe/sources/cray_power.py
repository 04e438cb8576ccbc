"""Power of nodes of HPE Cray EX, as the node's controller measures it: /sys/cray/pm_counters.

HPE, "User Access to Compute Node Power Data" (Cray-HPE/docs-csm): `energy` and `cpu_energy` in joules, which only grow,
`freshness`, which counts up about ten times a second as long as the controller tells anything new, and `raw_scan_hz`.
Where freshness stands still the figures do as well, however plausible they are: they are then missing. Means are from
energy; from `power`, the moment's, where there is no such counter.
"""

from __future__ import annotations

from typing import ClassVar

from piolet.api import Place, Rates, Row, Source, Unavailable

_PLACE = "/sys/cray/pm_counters"
_PARTS = {"node_power": ("energy", "power"), "cpu_power": ("cpu_energy", "cpu_power")}
_STALE = "the node's controller told nothing new (freshness)"


class CrayPower(Source):
    """The source."""

    name = "cray_power"
    text = "power of node and processors, as the controller of HPE Cray EX measures it"
    columns: ClassVar[tuple[str, ...]] = tuple(_PARTS)

    def __init__(self) -> None:
        super().__init__()
        self._rates = Rates(self)
        self._fresh: float | None = None
        self._parts: dict[str, str] = {}

    def open(self, place: Place) -> None:
        """Begin; see Source."""
        super().open(place)
        there = place.names(_PLACE)
        if not there:
            raise Unavailable(f"there is no {_PLACE}: it is no HPE Cray EX")
        if "freshness" not in there:
            raise Unavailable(f"{_PLACE} does not tell whether its figures are new (freshness)")
        self._parts = {column: next((n for n in names if n in there), "") for column, names in _PARTS.items()}
        self.never = {column: f"{_PLACE} does not have it" for column, name in self._parts.items() if not name}

    def read(self, now: int) -> list[Row]:
        """Return one row; see Source."""
        fresh = self.place.number(f"{_PLACE}/freshness")
        before, self._fresh = self._fresh, fresh
        values: dict[str, float] = {}
        for column, name in self._parts.items():
            if not name or before == fresh:
                continue
            try:
                value = self.place.number(f"{_PLACE}/{name}")
            except (OSError, ValueError, IndexError) as error:
                self.blank(f"{name}: {error}"[:120])
                continue
            if name.endswith("energy"):
                values.update(self._rates.of(column, now, {column: value}))
            elif before is not None:
                values[column] = value
        if before is not None and before == fresh:
            self.blank(_STALE, values=sum(map(bool, self._parts.values())))
        return [Row("", values)] if values else []
