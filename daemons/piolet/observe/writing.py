"""Writes what the layout has, each file whole or not at all.

Columns that are not given are null, as is NaN; shares, rates and what else a sensor tells are kept at the precision of
`samples.dataset.rounded`, which makes files a third of the size.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from piolet.base import files
from piolet.base.errors import ObserveError
from piolet.observe import layout
from piolet.samples.dataset import rounded

META_MOST = 16 << 20
_MEASURED = ("gpu", "host", "io", "net")
_EXACT = ("energy",)  # a counter that only grows: no two values are alike, and the last digits count


def write_table(directory: Path, table: str, rows: pa.Table | Mapping[str, Sequence[Any]]) -> Path:
    """Write a table of the layout and return its path; without rows there is no file, and one of before is removed.

    rows    columns of one length, lists or arrays: times are nanoseconds since 1970, or what Arrow takes for times

    Raises ObserveError: the layout has no such table or column, a column is of another type, or it cannot be written.
    """
    whole = conformed(table, rows)
    return write_pieces(directory, table, [whole] if len(whole) else [])


def write_pieces(directory: Path, table: str, pieces: Iterable[pa.Table]) -> Path:
    """Write a table that does not fit into memory: pieces as `conformed` returns them. Raises ObserveError."""
    target = path_of(directory, table)
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    schema, rows = layout.schema(table), 0
    try:
        with files.replacing(str(target), str(aside)):
            with pq.ParquetWriter(aside, schema, compression="zstd", **_encodings(schema)) as writer:
                for piece in pieces:
                    rows += len(piece)
                    writer.write_table(piece)
            with open(aside, "rb") as file:
                os.fsync(file.fileno())
        if not rows:
            target.unlink()
        _sync(directory)
    except (OSError, pa.ArrowException) as error:
        raise ObserveError(f"cannot write {target}: {_why(error)}") from None
    return target


def write_meta(directory: Path, meta: Mapping[str, Any]) -> Path:
    """Write meta.json, with the layout's version. Raises ObserveError: it has a key that the layout does not have."""
    path = directory / layout.META_FILE
    if unknown := sorted(set(meta) - set(layout.META)):
        raise ObserveError(f"{path}: the layout has no {', '.join(unknown)}")
    try:
        text = json.dumps({**meta, "version": layout.VERSION}, indent=1, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ObserveError(f"{path}: {error}") from None
    try:
        files.write_whole(str(path), text.encode() + b"\n", f"{path}.{os.getpid()}", sync=True)
        _sync(directory)
    except OSError as error:
        raise ObserveError(f"cannot write {path}: {_why(error)}") from None
    return path


def path_of(directory: Path, table: str) -> Path:
    """Return where a table is."""
    return directory / f"{table}{layout.SUFFIX}"


def conformed(table: str, rows: pa.Table | Mapping[str, Sequence[Any]]) -> pa.Table:
    """Return rows with the columns and types of the layout, and at the precision that is kept. Raises ObserveError."""
    if table not in layout.TABLES:
        raise ObserveError(f"the layout has no table {table!r}")
    schema = layout.schema(table)
    given = {name: rows[name] for name in (rows.column_names if isinstance(rows, pa.Table) else rows)}
    if unknown := sorted(set(given) - set(schema.names)):
        raise ObserveError(f"the table {table} has no column {', '.join(unknown)}")
    count = len(next(iter(given.values()))) if given else 0
    columns = []
    for field in schema:
        try:
            columns.append(_column(given[field.name], field) if field.name in given else pa.nulls(count, field.type))
        except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
            raise ObserveError(f"the column {field.name} of {table} does not fit: {error}") from None
        if len(columns[-1]) != count:
            raise ObserveError(f"the column {field.name} of {table} has {len(columns[-1])} rows, and others {count}")
        if table in _MEASURED and pa.types.is_floating(field.type):
            columns[-1] = _rounded(columns[-1], field)
    return pa.Table.from_arrays(columns, schema=schema)


def _column(values: Any, field: pa.Field) -> pa.ChunkedArray | pa.Array:
    if isinstance(values, pa.ChunkedArray | pa.Array):
        array = values
    elif isinstance(values, np.ndarray):
        array = pa.array(values, from_pandas=True)
    elif pa.types.is_dictionary(field.type):
        array = pa.array(values, pa.string())
    elif pa.types.is_timestamp(field.type):
        array = pa.array(values)
    elif pa.types.is_floating(field.type):
        # Arrow takes no whole number that the type does not hold exactly, as bytes per second in 32 bits.
        array = pa.array([float(one) if type(one) is int else one for one in values], pa.float64(), from_pandas=True)
    else:
        array = pa.array(values, field.type, from_pandas=True)
    if pa.types.is_timestamp(field.type) and pa.types.is_integer(array.type):
        array = array.cast(pa.int64()).cast(pa.timestamp("ns", "UTC"))
    if pa.types.is_timestamp(field.type):
        return array.cast(field.type, safe=False)
    if pa.types.is_dictionary(field.type) and not pa.types.is_dictionary(array.type):
        return array.cast(pa.string()).dictionary_encode()
    if isinstance(array, pa.ChunkedArray) and pa.types.is_dictionary(field.type):
        return array.unify_dictionaries().cast(field.type)
    if pa.types.is_floating(field.type):
        array = array.cast(field.type, safe=False)
        missing = pc.is_nan(array)
        return pc.if_else(missing, pa.scalar(None, field.type), array) if pc.any(missing).as_py() else array
    return array.cast(field.type)


def _rounded(array: pa.ChunkedArray | pa.Array, field: pa.Field) -> pa.ChunkedArray | pa.Array:
    unit = (field.metadata or {}).get(b"unit", b"").decode()
    if field.name in _EXACT or not unit or not len(array):
        return array
    values = array.to_numpy() if isinstance(array, pa.ChunkedArray) else array.to_numpy(zero_copy_only=False)
    kind = field.type.to_pandas_dtype()
    values = np.round(values, 4) if field.name == "span" else rounded(values, unit)
    return pa.array(np.asarray(values, kind), field.type, from_pandas=True)


def _encodings(schema: pa.Schema) -> dict[str, Any]:
    names = schema.names
    times = [field.name for field in schema if pa.types.is_timestamp(field.type)]
    exact = [name for name in _EXACT if name in names]
    plain = {*times, *exact}
    return {
        "use_dictionary": [name for name in names if name not in plain],
        "column_encoding": {
            **dict.fromkeys(times, "DELTA_BINARY_PACKED"), **dict.fromkeys(exact, "BYTE_STREAM_SPLIT"),
        },
        "write_statistics": [*times, *(name for name in ("gpu", "bin", "node", "quantity") if name in names)],
    }  # fmt: skip


def _sync(directory: Path) -> None:
    """Have names in a directory on the disk."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _why(error: BaseException) -> str:
    return os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
