"""Old months as Parquet files: written whole, and only then removed from the data base.

A file is named after its month and the batches that it holds, `2026-10.1-20311.parquet`; its rows are in the order in
which they came. A batch whose number is in a file's name is never read from the data base again.
"""

from __future__ import annotations

import datetime
import importlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

import sqlalchemy as sa

from piolet.base import files
from piolet.base.errors import EventError
from piolet.central.store.rows import Stored, stored
from piolet.central.store.schema import batches
from piolet.central.store.writer import Writer
from piolet.events.envelope import Event

_NAME = re.compile(r"(\d{4}-\d{2})\.(\d+)-(\d+)\.parquet")
_ROWS = 20_000
_AT_ONCE = 500
_TEXTS = ("cluster", "node", "epoch", "kind", "source", "severity", "boot", "step", "subject")
_OBJECTS = ("body", "more")  # of JSON; files of releases before have no more
_NUMBERS = ("batch", "seq", "job", "run", "uid")
_REALS = ("received", "time", "offset")
_OF_EVENT = (*_TEXTS, "seq", "job", "run", "uid", "time", "offset")


class Archive:
    """The files in `directory`, which may be none."""

    def __init__(self, directory: str) -> None:
        self.directory = directory

    def parts(self) -> list[tuple[str, int, int]]:
        """Return each file's path, first and last batch, in order."""
        try:
            names = os.listdir(self.directory)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise EventError(f"the archive {self.directory} cannot be read: {error.strerror}") from None
        found = [match for match in map(_NAME.fullmatch, names) if match]
        rows = [(os.path.join(self.directory, one[0]), int(one[2]), int(one[3])) for one in found]
        return sorted(rows, key=lambda row: row[1])

    @property
    def last(self) -> int:
        """The number of the last batch that is in a file; 0: none."""
        return max((last for _, _, last in self.parts()), default=0)

    def arrivals(self, after: int) -> Iterator[Stored]:
        """Yield the records of batches above `after`. Raises EventError: a file is damaged."""
        pa, pq = _arrow()

        for path, _, last in self.parts():
            if last <= after:
                continue
            try:
                with pq.ParquetFile(path) as file:
                    for piece in file.iter_batches(_ROWS):
                        for row in piece.to_pylist():
                            if row["batch"] > after:
                                yield _stored(row)
            except (OSError, pa.ArrowException, KeyError) as error:
                raise EventError(f"the archive's file {path} cannot be read: {error}") from None

    def write(self, month: str, records: Iterator[Stored], first: int, last: int) -> str:
        """Write the file of a month; return its path. Raises OSError; nothing is left then."""
        pa, pq = _arrow()

        schema = pa.schema(
            [(name, pa.dictionary(pa.int32(), pa.string())) for name in _TEXTS]
            + [(name, pa.string()) for name in _OBJECTS]
            + [(name, pa.int64()) for name in _NUMBERS]
            + [(name, pa.float64()) for name in _REALS]
        )  # fmt: skip
        path = os.path.join(self.directory, f"{month}.{first}-{last}.parquet")
        aside = f"{path}.new"
        os.makedirs(self.directory, 0o700, exist_ok=True)
        with files.replacing(path, aside):
            with pq.ParquetWriter(aside, schema, compression="zstd") as writer:
                rows: list[dict[str, Any]] = []
                for one in records:
                    rows.append(_row(one))
                    if len(rows) >= _ROWS:
                        writer.write_table(pa.Table.from_pylist(rows, schema))
                        rows = []
                writer.write_table(pa.Table.from_pylist(rows, schema))
            descriptor = os.open(aside, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        return path


def _arrow() -> tuple[Any, Any]:
    """Return Arrow's modules: who archives nothing loads nothing."""
    return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")


def months(engine: sa.Engine, after: int, before: str) -> Iterator[tuple[str, int, int]]:
    """Yield each month before the month `before`, with its first and last batch above `after`."""
    with engine.connect() as connection:
        rows = connection.execute(
            sa.select(batches.c.id, batches.c.received).where(batches.c.id > after).order_by(batches.c.id)
        )
        month, first, last = "", 0, 0
        for row in rows:
            # A clock that was put back makes no batch of an earlier month: numbers are in order, months need be, too.
            of = max(month, month_of(row.received))
            if of != month:
                if month:
                    yield month, first, last
                month, first = of, row.id
            if month >= before:
                return
            last = row.id
        if month and month < before:
            yield month, first, last


def month_of(time: float) -> str:
    """Return the month of a time, in UTC."""
    return datetime.datetime.fromtimestamp(time, datetime.UTC).strftime("%Y-%m")


def months_ago(now: float, count: int) -> str:
    """Return the month so many before that of `now`."""
    then = datetime.datetime.fromtimestamp(now, datetime.UTC)
    number = then.year * 12 + then.month - 1 - count
    return f"{number // 12:04}-{number % 12 + 1:02}"


def removed(writer: Writer, upto: int) -> int:
    """Remove some of the batches up to a number from the data base; return how many, 0 where none is left."""
    with writer.engine.begin() as connection:
        query = sa.select(batches.c.id).where(batches.c.id <= upto).order_by(batches.c.id).limit(_AT_ONCE)
        numbers: Sequence[int] = connection.scalars(query).all()
        if numbers:
            connection.execute(sa.delete(batches).where(batches.c.id <= numbers[-1]))
    return len(numbers)


def _row(one: Stored) -> dict[str, Any]:
    row = {name: getattr(one.event, name) for name in _OF_EVENT}
    for name in _OBJECTS:
        value = dict(getattr(one.event, name))
        row[name] = json.dumps(value, separators=(",", ":")) if value else None
    return {**row, "batch": one.batch, "received": one.received}


def _stored(row: dict[str, Any]) -> Stored:
    fields = {name: row[name] for name in _OF_EVENT}
    objects = {name: json.loads(row.get(name) or "{}") for name in _OBJECTS}
    event = Event(**fields, **objects)
    return stored(row["batch"], event, row["received"], None)
