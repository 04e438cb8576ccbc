"""What readers share: files and JSON within bounds, limits of what a sensor can tell, and the steps that come of it."""

from __future__ import annotations

import gzip
import io
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from piolet.api import GPU_QUANTITIES, HOST_QUANTITIES
from piolet.base import files
from piolet.base.errors import ObserveError
from piolet.steps import identity

FILE_MOST = 256 << 20  # of a file, packed and unpacked
NAME_MOST = 256
NS = 10**9
EARLIEST, LATEST = 946684800 * NS, 4102444800 * NS  # 2000 and 2100: a time outside is in another unit
_GZIP = b"\x1f\x8b"

Array = np.ndarray[Any, np.dtype[Any]]

# What no sensor of ours exceeds, by the unit of a quantity; a value outside is none. Shares may be a little above 1:
# counters and clocks are read one after the other.
MOST = {"1": 1.05, "W": 20_000.0, "degC": 200.0, "MHz": 20_000.0, "B/s": 1e13, "B": 1e15, "J": 1e15, "cores": 1e5}
UNITS = {quantity.name: quantity.unit for quantity in (*GPU_QUANTITIES, *HOST_QUANTITIES)} | {
    "node_power": "W",
    "cpu_power": "W",
}


@dataclass(frozen=True)
class Asked:
    """What the caller says of the files: job and step, the node, and the GPUs' model; '' is what the files say."""

    job: str = ""
    step: str = ""
    node: str = ""
    model: str = ""


@dataclass
class Step:
    """A step as a reader made it: what meta.json is to have, and columns of the layout's tables."""

    meta: dict[str, Any]
    tables: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """JOB.STEP, and -rN after N restarts."""
        return identity.run_name(self.meta["job"], self.meta["step"], int(self.meta.get("restarts") or 0))


class Remarks:
    """Rows of `quality`."""

    def __init__(self) -> None:
        self.rows: list[tuple[str | None, str | None, str, int, int, str, int | None]] = []

    def add(
        self, source: str, span: tuple[int, int], reason: str, values: int | None = None,
        node: str | None = None, subject: str | None = None,
    ) -> None:  # fmt: skip
        """Say that a source told nothing, or something else than one may think, within a span of nanoseconds."""
        self.rows.append((node, subject, source, *span, reason, values))

    def table(self) -> dict[str, list[Any]]:
        """Return them as columns."""
        names = ("node", "subject", "source", "start", "end", "reason", "values")
        return {name: [row[place] for row in self.rows] for place, name in enumerate(names)}


def content_of(path: Path, most: int = FILE_MOST) -> bytes:
    """Return what a regular file holds, unpacked if it is packed by gzip. Raises ObserveError."""
    try:
        data, _ = files.read_small(str(path), most)
        if data.startswith(_GZIP) and len(data) <= most:
            with gzip.GzipFile(fileobj=io.BytesIO(data)) as packed:
                data = packed.read(most + 1)
    except files.NotRegularError:
        raise ObserveError(f"{path} is no regular file") from None
    except (OSError, EOFError, zlib.error) as error:
        raise ObserveError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    if len(data) > most:
        raise ObserveError(f"{path} is larger than the {most >> 20} MiB that are read")
    return data


def json_of(path: Path, most: int = FILE_MOST) -> Any:
    """Return the JSON in a file; Python's NaN and Infinity are none. Raises ObserveError."""
    try:
        return json.loads(content_of(path, most), parse_constant=_no_number, object_pairs_hook=_object)
    except RecursionError:
        raise ObserveError(f"{path} is nested too deeply") from None
    except ValueError as error:  # UnicodeDecodeError too
        raise ObserveError(f"{path} is no JSON: {error}") from None


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number of JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object; Python would take the last of two values with one name."""
    made = dict(pairs)
    if len(made) < len(pairs):
        twice = next(name for place, (name, _) in enumerate(pairs) if name in dict(pairs[:place]))
        raise ValueError(f"{twice[:NAME_MOST]!r} is there twice")
    return made


def text_of(value: Any, what: str, path: Path) -> str:
    """Return a text of some hundred characters at most. Raises ObserveError: it is none."""
    if not isinstance(value, str) or len(value) > NAME_MOST or not value.isprintable():
        raise ObserveError(f"{path}: {what} is no text of at most {NAME_MOST} printable characters")
    return value


def whole_of(value: Any, what: str, path: Path, most: int) -> int:
    """Return a whole number of 0 to `most`. Raises ObserveError: it is none."""
    if type(value) is not int or not 0 <= value <= most:
        raise ObserveError(f"{path}: {what} is no whole number of 0 to {most}")
    return value


def job_of(found: str, asked: Asked, path: Path) -> tuple[str, str]:
    """Return job and step: those asked for, or the job in the file and its batch step. Raises ObserveError."""
    job, step = asked.job or found, asked.step or "batch"
    if not job:
        raise ObserveError(f"{path} does not say of which job it is", "name it with --job JOB[.STEP]")
    if not identity.is_name(f"{job}.{step}"):
        raise ObserveError(f"{path}: '{job}.{step}' is not JOB.STEP", "name it with --job JOB[.STEP]")
    return job, step


def sound(
    values: Array, quantity: str, source: str, remarks: Remarks, span: tuple[int, int],
    node: str | None = None, subject: str | None = None,
) -> Array:  # fmt: skip
    """Return values in the quantity's unit with NaN for what no sensor can tell, and say how many those were.

    Raises ObserveError: that is most of them, so that the unit must be another.
    """
    most, least = MOST.get(UNITS[quantity], math.inf), -100.0 if UNITS[quantity] == "degC" else 0.0
    with np.errstate(invalid="ignore"):
        outside = ~np.isnan(values) & ~((values >= least) & (values <= most))
    count, known = int(outside.sum()), int((~np.isnan(values)).sum())
    if not count:
        return values
    if 2 * count > known:
        worst = values[outside][0]
        unit = UNITS[quantity].replace("1", "a share")
        raise ObserveError(
            f"{source}: {count} of {known} values are none of {quantity}: {worst:g} where {least:g} to {most:g} is"
            f" expected ({unit})",
            "is it in another unit?",
        )
    remarks.add(
        source, span, f"outside of what there can be: {least:g} to {most:g} {UNITS[quantity]}", count, node, subject
    )
    return np.where(outside, np.nan, values)


def checked_times(times: Array, path: Path, unit: str) -> Array:
    """Return times in nanoseconds since 1970. Raises ObserveError: they are of another unit."""
    if len(times) and not (times.min() >= EARLIEST and times.max() <= LATEST):
        raise ObserveError(f"{path}: a time is not between 2000 and 2100", f"times are {unit}")
    return times


def columns_of(parts: Sequence[Mapping[str, Any]], names: tuple[str, ...]) -> dict[str, Any]:
    """Return parts of a table, one below the other; a column that a part lacks is missing there."""
    if not parts:
        return {}
    found = [name for name in names if any(name in part for part in parts)]
    columns: dict[str, Any] = {}
    for name in found:
        pieces = []
        for part in parts:
            size = len(part["time"])
            pieces.append(np.asarray(part[name]) if name in part else np.full(size, np.nan))
        columns[name] = np.concatenate(pieces)
    return columns
