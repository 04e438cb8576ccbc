"""Power of the processors' packages by RAPL: energy counters in microjoules, which begin again at max_energy_range_uj.

Linux, power/powercap/powercap.rst. Since CVE-2020-8694 only root may read the counters: fine steps of them tell secrets
of other processes. Here they are read every few seconds, and a step's data have the sum of all packages as a mean over
that time. With packages of 250 W and counters of 262 kJ they begin again every 17 minutes.
"""

from __future__ import annotations

import re
from typing import ClassVar

from piolet.api import Place, Row, Source, Unavailable

_CLASS = "/sys/class/powercap"
_PACKAGE = re.compile(r"intel-rapl:\d+")  # a part of a package has one number more; AMD's are called so, too


class Rapl(Source):
    """The source."""

    name = "rapl"
    text = "power of the processors, by RAPL"
    columns: ClassVar[tuple[str, ...]] = ("cpu_power",)
    needs: ClassVar[tuple[str, ...]] = (f"{_CLASS}/intel-rapl:*/energy_uj",)

    def __init__(self) -> None:
        super().__init__()
        self._packages: dict[str, float] = {}
        self._last: dict[str, float] = {}
        self._taken = 0

    def open(self, place: Place) -> None:
        """Begin; see Source."""
        super().open(place)
        zones = [name for name in place.names(_CLASS) if _PACKAGE.fullmatch(name)]
        for zone in zones:
            if not place.word(f"{_CLASS}/{zone}/name").startswith("package"):
                continue  # psys is of the whole platform, and has the packages in it
            try:
                place.held_text(f"{_CLASS}/{zone}/energy_uj")
                self._packages[zone] = place.number(f"{_CLASS}/{zone}/max_energy_range_uj")
            except PermissionError:
                raise Unavailable("only root may read RAPL's counters (CVE-2020-8694)") from None
            except (OSError, ValueError, IndexError) as error:
                raise Unavailable(f"RAPL's counters cannot be read: {error}") from None
        if not self._packages:
            raise Unavailable("the processors have no RAPL, or its driver (intel_rapl_msr) is not loaded")

    def read(self, now: int) -> list[Row]:
        """Return one row; see Source."""
        told = {zone: float(self.place.held_text(f"{_CLASS}/{zone}/energy_uj").split()[0]) for zone in self._packages}
        last, self._last = self._last, told
        span, self._taken = (now - self._taken) / 1e9 if self._taken else 0.0, now
        if span <= 0 or not last:
            return []
        gained = sum(
            value - last[zone] + (self._packages[zone] if value < last[zone] else 0.0) for zone, value in told.items()
        )
        return [Row("", {"cpu_power": gained / 1e6 / span})]
