"""Makes longer means of samples, and says so in `quality`.

A mean is over what its samples cover of the time; counters (energy) keep the last value, masks all their bits, codes
the largest. So an integral over time stays what it was, and what happened within the time is told by the roll-up's
least and most alone.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]

from piolet.observe import layout, reading, writing
from piolet.observe.gathering import in_order

Array = np.ndarray[Any, np.dtype[Any]]

TABLES = ("gpu", "host", "io", "net")
SOURCE = "kept"
_KEYS = ("node", "gpu", "uuid", "mount", "kind", "scope", "port")
_LAST, _BITS, _LARGEST = ("energy",), ("clock_events",), ("xid",)


def thin(directory: Path, seconds: float, now: float) -> None:
    """Keep a step's samples as means over so many seconds. Raises ObserveError."""
    step = reading.open_step(directory)
    for table in TABLES:
        if writing.path_of(directory, table).exists():
            writing.write_pieces(directory, table, _thinned(step, table, seconds))
    say(directory, step, f"samples are kept as means over {seconds:g} s", now)


def strip(directory: Path, why: str, now: float) -> None:
    """Remove a step's samples; its roll-up stays. Raises ObserveError."""
    step = reading.open_step(directory)
    say(directory, step, why, now)
    for table in TABLES:
        writing.path_of(directory, table).unlink(missing_ok=True)


def say(directory: Path, step: reading.StepData, why: str, now: float) -> None:
    """Add a row to the step's `quality`: what was done to its data, and when."""
    day = datetime.datetime.fromtimestamp(now, datetime.UTC).strftime("%Y-%m-%d")
    row = {"source": [SOURCE], "start": [step.start], "end": [step.end], "reason": [f"{why} since {day}"]}
    writing.write_table(directory, "quality", pa.concat_tables([step.quality, writing.conformed("quality", row)]))


def _thinned(step: reading.StepData, table: str, seconds: float) -> Iterator[pa.Table]:
    for piece in step.pieces(table):
        yield _means(in_order(piece), seconds, step.start) if len(piece) else piece


def _means(table: pa.Table, seconds: float, start: int) -> pa.Table:
    """Return means of rows in order of node, device and time."""
    keys = [table[name].combine_chunks() for name in _KEYS if name in table.column_names]
    end = table["time"].cast(pa.int64()).to_numpy() - start // 1000
    bin_ = np.maximum(-(-end // round(seconds * 1e6)), 0)
    changed = np.diff(bin_) != 0
    for key in keys:
        codes = key.indices if pa.types.is_dictionary(key.type) else key
        changed |= np.diff(np.asarray(codes if codes.type == pa.uint16() else codes.fill_null(-1))) != 0
    firsts = np.flatnonzero(np.concatenate(([True], changed)))
    lasts = np.append(firsts[1:], len(table)) - 1
    span = table["span"].to_numpy().astype(np.float64)
    columns: dict[str, Any] = {}
    for field in table.schema:
        column = table[field.name]
        if field.name == "span":
            columns["span"] = np.add.reduceat(span, firsts)
        elif field.name in _KEYS or field.name == "time" or field.name in _LAST:
            columns[field.name] = column.take(pa.array(lasts))
        else:
            columns[field.name] = _reduced(field.name, column.to_numpy().astype(np.float64), span, firsts)
    return writing.conformed(table_of(table), columns)


def _reduced(name: str, values: Array, span: Array, firsts: Array) -> Array:
    known = ~np.isnan(values)
    count = np.add.reduceat(known.astype(np.int64), firsts)
    plain = np.where(known, values, 0.0)
    result: Array
    if name in _BITS:
        result = np.bitwise_or.reduceat(plain.astype(np.int64), firsts).astype(np.float64)
    elif name in _LARGEST:
        result = np.maximum.reduceat(plain, firsts)
    else:
        with np.errstate(invalid="ignore", divide="ignore"):
            result = np.add.reduceat(plain * span, firsts) / np.add.reduceat(known * span, firsts)
    return np.where(count > 0, result, np.nan)


def table_of(found: pa.Table) -> str:
    """Return which table of the layout has these columns."""
    return next(name for name in TABLES if layout.schema(name).names == found.column_names)
