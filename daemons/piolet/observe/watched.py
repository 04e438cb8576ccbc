"""One step that is recorded: its own sources, and the rows of its next frame."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from piolet.api import HOST_QUANTITIES, OF_STEP, Place, Source, Target, Unavailable
from piolet.observe.choosing import HOST
from piolet.observe.found import FoundStep
from piolet.observe.quality import Gaps
from piolet.observe.sources._processes import TooMany, pids_of
from piolet.samples.choose import HOST_COLLECTOR, opened

_OWN = tuple(quantity.name for quantity in HOST_QUANTITIES)


@dataclass
class StepRead:
    """What a step's own sources told in one reading: figures, the seconds that they are of (0: none yet), and what was
    missing, by source, subject and reason."""

    values: dict[str, float] = field(default_factory=dict)
    span: float = 0.0
    blanks: dict[tuple[str, str, str], int] = field(default_factory=dict)


class Watched:
    """A step.

    early    when it is read besides the ticks that all steps have, by time.monotonic()
    told     when `observe.step` was written last, by time.monotonic()
    last     seconds since 1970 of the last frame's end
    gpus     by UUID, why it is the step's: "process" or "alone"
    why      why a source tells nothing of it, by name; '' where it tells
    """

    def __init__(
        self, step: FoundStep, early: Sequence[float], now: float, classes: Iterable[type[Source]], place: Place, *,
        host: bool,
    ) -> None:  # fmt: skip
        self.step = step
        self._open: Callable[[], None] | None = lambda: self._open_all(classes, place, host=host)
        self.early = list(early)
        self.gaps = Gaps()
        self.told = float("-inf")
        self.found = self.last = now
        self.gpus: dict[str, str] = {}
        self.why: dict[str, str] = {}
        self._host: Any = None
        self._sources: list[Source] = []
        self._taken = 0
        self._pids: set[int] = set()

    def _open_all(self, classes: Iterable[type[Source]], place: Place, *, host: bool) -> None:
        if host:
            self._host, why = opened(HOST_COLLECTOR, Target(groups=self.step.groups, period=place.period))
            self.why[HOST] = why
        for each in classes:
            if each.scope != OF_STEP:
                continue
            source = each()
            try:
                source.open(place)
                self.why[source.name] = ""
                self.why |= {f"{source.name}.{column}": why for column, why in source.never.items()}
                self._sources.append(source)
            except Unavailable as error:
                self.why[source.name] = str(error)
            except Exception as error:  # noqa: BLE001 - a source is a plug-in: its fault costs its own figures only
                self.why[source.name] = f"it failed: {type(error).__name__}: {error}"[:200]

    def pids(self) -> set[int]:
        """Return the step's processes at the last reading."""
        return self._pids

    def read(self, now: int) -> StepRead:
        """Return what the sources tell since the last reading; for the lane of steps. Raises OSError: it has ended.

        The first call opens the sources, and takes the counters only.
        """
        if self._open is not None:
            open_all, self._open = self._open, None
            open_all()
        found = StepRead(span=(now - self._taken) / 1e9 if self._taken else 0.0)
        self._taken = now
        self._pids = set()
        with contextlib.suppress(TooMany):  # the sources say it
            self._pids = pids_of(Path(self.step.place[0]))
        if self._host is not None:
            for reading in self._host.read(now):
                found.values |= {n: v for n, v in zip(_OWN, reading.values, strict=True) if not math.isnan(v)}
            for (quantity, reason), count in self._host.blanks.items():
                found.blanks[HOST, quantity, reason] = count
            self._host.blanks.clear()
        for source in self._sources:
            try:
                for row in source.read(now):
                    found.values |= {name: value for name, value in row.values.items() if isinstance(value, float)}
            except Exception as error:  # noqa: BLE001 - likewise
                source.blank(f"it failed: {type(error).__name__}: {error}"[:200])
            for (subject, reason), count in source.blanks.items():
                found.blanks[source.name, subject, reason] = count
            source.blanks.clear()
        return found


def table(rows: Sequence[Mapping[str, Any]], first: Sequence[str] = ()) -> dict[str, Any] | None:
    """Return rows as a table of a frame, without columns that none has a value in; None: there is no row.

    Numbers are rounded to seven digits or to 0.001, more than what measured them has; what is not finite is missing.
    """
    rows = [{name: _plain(value) for name, value in row.items()} for row in rows]
    names = dict.fromkeys([*first, *(name for row in rows for name in row)])
    columns = [name for name in names if any(row.get(name) is not None for row in rows)]
    if not columns:
        return None
    return {"columns": columns, "rows": [[row.get(name) for name in columns] for row in rows]}


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        if value.is_integer() and abs(value) < 2**53:
            return int(value)
        return float(f"{value:.7g}") if abs(value) < 1e6 else round(value, 3)  # times are seconds since 1970
    return value
