"""Tables for other tools: CSV with units in its head, or a line of JSON for each row."""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from typing import Any, BinaryIO

import pyarrow as pa  # type: ignore[import-untyped]
from pyarrow import csv

from piolet.base.errors import ObserveError
from piolet.observe import layout
from piolet.observe.reading import StepData


def write(step: StepData, table: str, columns: Sequence[str], kind: str, out: BinaryIO) -> None:
    """Write a table of a step.

    columns   which; none: all that have a value in some row
    kind      'csv', times in UTC, missing values empty; or 'json', times as text, missing values left out

    Raises ObserveError.
    """
    schema = layout.schema(table)
    if unknown := sorted(set(columns) - set(schema.names)):
        raise ObserveError(f"the table {table} has no column {', '.join(unknown)}", f"it has {', '.join(schema.names)}")
    wanted = list(columns) or _with_values(step, table)
    first = True
    for piece in step.pieces(table, wanted):
        plain = piece.cast(pa.schema([_plain(field) for field in piece.schema]))
        if kind == "json":
            for row in plain.to_pylist():
                out.write(json.dumps({name: _text(value) for name, value in row.items() if value is not None}).encode())
                out.write(b"\n")
        else:
            plain = plain.rename_columns([_head(field) for field in piece.schema])
            csv.write_csv(plain, out, csv.WriteOptions(include_header=first, quoting_style="needed"))
        first = False
    if first and kind == "csv":
        out.write(",".join(_head(schema.field(name)) for name in wanted or schema.names).encode() + b"\n")


def _with_values(step: StepData, table: str) -> list[str]:
    names = layout.schema(table).names
    found: set[str] = set()
    for piece in step.pieces(table):
        found |= {name for name in names if piece[name].null_count < len(piece)}
    return [name for name in names if name in found]


def _plain(field: pa.Field) -> pa.Field:
    return pa.field(field.name, pa.string() if pa.types.is_dictionary(field.type) else field.type)


def _head(field: pa.Field) -> str:
    unit = (field.metadata or {}).get(b"unit", b"").decode()
    return f"{field.name} [{unit}]" if unit not in ("", "1") else str(field.name)


def _text(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime.datetime) else value
