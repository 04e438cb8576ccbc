"""Reads what the layout has of one step: `open_step`, or `from_score` of what `--score` wrote.

Detectors and pages take a `StepData` and nothing else. Whoever calls this reads files with their own rights; a file
that is not what it should be is an ObserveError, and so is one of a layout that is not known here.
"""

from __future__ import annotations

import functools
import io
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from piolet.api import GPU_QUANTITIES, HOST_QUANTITIES
from piolet.base import files
from piolet.base.errors import ObserveError
from piolet.observe import layout, packed
from piolet.observe.writing import META_MOST, conformed, path_of
from piolet.samples.dataset import Dataset, Node, open_dataset
from piolet.steps import identity

_NEEDED = {"job": str, "step": str, "start": int}
_MEASURED = ("gpu", "host", "io", "net")
Only = tuple[str, str] | None
Pieces = Callable[[str, list[str], bool, Only], Iterator[pa.Table]]
"""What yields columns of a table: whether in pieces that are small, and which name in which column is wanted only."""


class StepData:
    """All that is known of a step.

    directory   where it lies
    meta        what meta.json says: keys of layout.META
    """

    def __init__(self, directory: Path, meta: dict[str, Any], pieces: Pieces) -> None:
        self.directory, self.meta = directory, meta
        self._pieces = pieces

    @property
    def name(self) -> str:
        """ "112.0", after a requeue "112.0-r1"."""
        return identity.run_name(self.meta["job"], self.meta["step"], int(self.meta.get("restarts") or 0))

    @property
    def start(self) -> int:
        """When it began, in nanoseconds since 1970."""
        return int(self.meta["start"])

    @cached_property
    def end(self) -> int:
        """When it ended, in nanoseconds since 1970; of a step whose end is not known when it was last heard of."""
        if isinstance(end := self.meta.get("end"), int):
            return end
        last = self.start
        for table in _MEASURED:
            if (found := pc.max(self.table(table, ["time"])["time"]).cast(pa.int64()).as_py()) is not None:
                last = max(last, found * 1000)
        return last

    @cached_property
    def nodes(self) -> tuple[str, ...]:
        """Names of its nodes, those without data too, in the order of meta.json."""
        found = dict.fromkeys(str(name) for name in self.meta.get("nodes") or ())
        for table in ("gpu", "host"):
            found.update(dict.fromkeys(pc.unique(self.table(table, ["node"])["node"]).drop_null().to_pylist()))
        return tuple(found)

    @property
    def quality(self) -> pa.Table:
        """What the data do not tell, and why."""
        return self.table("quality")

    def table(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Return a table of the layout, or these of its columns; empty where there is no file. Raises ObserveError.

        Names are dictionaries, and one for all of a column, so that it can be grouped by them.
        """
        wanted = _wanted(name, columns)
        schema = layout.schema(name)
        found = list(self._pieces(name, wanted, False, None))
        if not found:
            return pa.schema([schema.field(column) for column in wanted], metadata=schema.metadata).empty_table()
        return (found[0] if len(found) == 1 else pa.concat_tables(found)).unify_dictionaries()

    def pieces(self, name: str, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Yield a table piece by piece, each of some 10^5 rows, where it may be too large. Raises ObserveError."""
        return self._pieces(name, _wanted(name, columns), True, None)

    def only(self, name: str, column: str, value: str) -> Iterator[pa.Table]:
        """Yield the rows of a table that have a name in a column; groups of rows without it are not read."""
        for piece in self._pieces(name, _wanted(name, None), True, (column, value)):
            if all(chunk.dictionary.to_pylist() == [value] and not chunk.null_count for chunk in piece[column].chunks):
                yield piece
            elif len(found := piece.filter(pc.equal(piece[column], value))):
                yield found

    def with_tables(self, more: Mapping[str, pa.Table]) -> StepData:
        """Return the same with tables of the layout, whole, in the place of those that it has no rows of."""

        def pieces(name: str, wanted: list[str], apart: bool, only: Only) -> Iterator[pa.Table]:
            own = self._pieces(name, wanted, apart, only)
            first = next((piece for piece in own if len(piece)), None)
            if first is not None:
                yield from itertools.chain((first,), own)
            elif name in more:
                yield more[name].select(wanted)

        return StepData(self.directory, self.meta, pieces)


def device_of(meta: Mapping[str, Any], node: str, index: int) -> Mapping[str, Any]:
    """Return what is known of a GPU of a step; nothing where it is not known.

    A step that has some of a node's GPUs has a list of those alone, each with its index as `gpu`.
    """
    devices = meta.get("devices")
    of_node = devices.get(node) if isinstance(devices, Mapping) else None
    known = [one if isinstance(one, Mapping) else {} for one in of_node] if isinstance(of_node, list | tuple) else []
    if any("gpu" in one for one in known):
        return next((one for one in known if one.get("gpu") == index), {})
    return known[index] if 0 <= index < len(known) else {}


def open_step(directory: Path) -> StepData:
    """Return the data of the step in `directory`. Raises ObserveError: there are none, or meta.json is damaged."""
    return StepData(directory, read_meta(directory), functools.partial(_read, directory))


def open_packed(archive: Path, directory: str) -> StepData:
    """Return the data of a step in an archive of short steps (observe/packing.py). Raises ObserveError."""
    path = archive / directory / layout.META_FILE
    try:
        meta = _meta(packed.member(archive, f"{directory}/{layout.META_FILE}"), path)
    except FileNotFoundError:
        raise ObserveError(f"there is no {path}") from None

    def pieces(name: str, columns: list[str], apart: bool, only: Only) -> Iterator[pa.Table]:
        try:
            data = packed.member(archive, f"{directory}/{name}{layout.SUFFIX}")
        except FileNotFoundError:
            return
        yield from _of_file(io.BytesIO(data), path.with_name(f"{name}{layout.SUFFIX}"), name, columns, apart, only)

    return StepData(archive / directory, meta, pieces)


def read_meta(directory: Path) -> dict[str, Any]:
    """Return what meta.json says. Raises ObserveError."""
    path = directory / layout.META_FILE
    try:
        return _meta(files.read_small(str(path), META_MOST)[0], path)
    except OSError as error:
        raise ObserveError(
            f"cannot read {path}: {error.strerror}", "data of a step are a directory with meta.json and *.parquet"
        ) from None
    except files.NotRegularError:
        raise ObserveError(f"{path} is damaged: it is no JSON") from None


def _meta(text: bytes, path: Path) -> dict[str, Any]:
    try:
        meta = json.loads(text)
    except (ValueError, RecursionError):
        raise ObserveError(f"{path} is damaged: it is no JSON") from None
    if not isinstance(meta, dict) or any(type(meta.get(key)) is not kind for key, kind in _NEEDED.items()):
        raise ObserveError(f"{path} is damaged: it does not say job, step and start")
    nodes = meta.get("nodes")
    if nodes is not None and not (isinstance(nodes, list) and all(isinstance(name, str) for name in nodes)):
        raise ObserveError(f"{path} is damaged: its nodes are no names")
    if meta.get("version") != layout.VERSION:
        raise ObserveError(
            f"{path} is of version {meta.get('version')} of the layout, and this release knows {layout.VERSION}"
        )
    return meta


def pieces(directory: Path, name: str) -> Iterator[pa.Table]:
    """Yield a table of a directory by groups of rows, whether it has a meta.json or not. Raises ObserveError."""
    return _read(directory, name, _wanted(name, None), True, None)


def _wanted(name: str, columns: Sequence[str] | None) -> list[str]:
    if name not in layout.TABLES:
        raise ObserveError(f"the layout has no table {name!r}")
    known = layout.schema(name).names
    wanted = known if columns is None else list(columns)
    if unknown := sorted(set(wanted) - set(known)):
        raise ObserveError(f"the table {name} has no column {', '.join(unknown)}")
    return wanted


def _read(directory: Path, name: str, columns: list[str], apart: bool, only: Only) -> Iterator[pa.Table]:
    """Yield a table from its file: as a whole, or each group of rows."""
    path = path_of(directory, name)
    try:
        with os.fdopen(files.open_regular(str(path)), "rb") as file:
            yield from _of_file(file, path, name, columns, apart, only)
    except FileNotFoundError:
        return
    except (OSError, files.NotRegularError) as error:
        raise ObserveError(f"cannot read {path}: {_why(error)}") from None


def _of_file(
    file: BinaryIO, path: Path, name: str, columns: list[str], apart: bool, only: Only
) -> Iterator[pa.Table]:  # fmt: skip
    schema = layout.schema(name)
    wanted = pa.schema([schema.field(column) for column in columns], metadata=schema.metadata)
    try:
        with pq.ParquetFile(file) as parquet:
            known = [column for column in columns if column in set(parquet.schema_arrow.names)]
            if not apart:
                yield _fitted(parquet.read(known), parquet.metadata.num_rows, wanted)
                return
            for number in range(parquet.num_row_groups):
                if only is not None and not _may_have(parquet.metadata.row_group(number), only):
                    continue
                rows = parquet.metadata.row_group(number).num_rows
                yield _fitted(parquet.read_row_group(number, known), rows, wanted)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise ObserveError(f"cannot read {path}: {_why(error)}") from None


def _why(error: BaseException) -> object:
    return os.strerror(error.errno) if isinstance(error, OSError) and error.errno else error


def _may_have(group: Any, only: tuple[str, str]) -> bool:
    """Return whether a group of rows may have a name in a column, as its statistics tell."""
    for number in range(group.num_columns):
        column = group.column(number)
        if column.path_in_schema == only[0] and column.is_stats_set and column.statistics.has_min_max:
            return bool(column.statistics.min <= only[1] <= column.statistics.max)
    return True


def _fitted(found: pa.Table, rows: int, wanted: pa.Schema) -> pa.Table:
    """Return a table of these columns; what an older writer did not know is null."""
    columns = [
        found[field.name].cast(field.type) if field.name in found.column_names else pa.nulls(rows, field.type)
        for field in wanted
    ]
    return pa.Table.from_arrays(columns, schema=wanted)


# -- what --score wrote

_Gap = tuple[str | None, str, int, int, str, int | None]


def from_score(directory: Path) -> StepData:
    """Return a data set of `--score` as data of a step. Raises ScoreError: there is none."""
    data = open_dataset(directory)

    def pieces(name: str, columns: list[str], _apart: bool, _only: Only) -> Iterator[pa.Table]:
        return (piece.select(columns) for piece in _pieces_of(data, name))

    return StepData(directory, _meta_of(data), pieces)


def _meta_of(data: Dataset) -> dict[str, Any]:
    header = data.nodes[0].facts.header
    origin = data.origin
    meta: dict[str, Any] = {
        "version": layout.VERSION,
        "job": str(header["job"]),
        "step": str(header["step"]),
        "restarts": header.get("restarts", 0),
        "nodes": [node.name for node in data.nodes],
        "start": data.start,
        "score": str(data.directory),
        "devices": {node.name: node.facts.devices for node in data.nodes},
        "simulated": data.simulated,
        **{key: origin[key] for key in ("user", "name", "command") if key in origin},
    }
    if all(node.facts.complete for node in data.nodes):
        meta["end"] = data.end
    if "period" in header:
        meta["interval"] = header["period"]
    return meta


def _pieces_of(data: Dataset, name: str) -> Iterator[pa.Table]:
    if name in ("gpu", "host"):
        for node in data.nodes:
            yield from _samples_of(node, name)
    elif name == "quality":
        rows: list[_Gap] = [row for node in data.nodes for row in _quality_of(node)]
        absent = data.wanted - len(data.nodes)
        rows += [(None, "samples", data.start, data.end, "no samples of a node came", None)] * absent
        if rows:
            names = ("node", "source", "start", "end", "reason", "values")
            yield conformed(name, dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)))


def _samples_of(node: Node, table: str) -> Iterator[pa.Table]:
    quantities = GPU_QUANTITIES if table == "gpu" else HOST_QUANTITIES
    names = [quantity.name for quantity in quantities]
    uuids = [str(device["uuid"]) for device in node.facts.devices]
    for chunk in node.chunks(names, host=table == "host"):
        rows: dict[str, Any] = {"time": chunk["end"], "span": chunk["span"], **{name: chunk[name] for name in names}}
        rows["node"] = pa.DictionaryArray.from_arrays(np.zeros(len(chunk["end"]), np.int32), [node.name])
        if table == "gpu":
            rows["gpu"] = chunk["device"]
            known = np.where(chunk["device"] < len(uuids), chunk["device"], -1).astype(np.int32)
            rows["uuid"] = pa.DictionaryArray.from_arrays(pa.array(known, mask=known < 0), uuids or [""])
        yield conformed(table, rows)


def _quality_of(node: Node) -> list[_Gap]:
    facts = node.facts
    whole = (facts.start, facts.end)
    rows: list[_Gap] = []
    for quantity, reasons in facts.quality.get("blanks", {}).items():
        rows += [(node.name, str(quantity), *whole, str(reason), int(count)) for reason, count in reasons.items()]
    if dropped := facts.quality.get("dropped_frames"):
        rows.append((node.name, "samples", *whole, "dropped: the file system did not keep up", int(dropped)))
    origin = int(facts.header.get("origin", 0))
    for event in facts.events:
        at = int(event.get("at", 0)) + origin
        if event["event"] == "restart":
            rows.append((node.name, "samples", at, at, "the sampler was restarted", None))
        elif event["event"] == "error":
            rows.append((node.name, str(event.get("source", "")), at, at, str(event.get("text", "")), None))
    if facts.thinned:
        rows.append((node.name, "samples", *whole, f"thinned: means over up to {facts.thinned:.1f} s are kept", None))
    if not facts.complete:
        rows.append((node.name, "samples", facts.end, facts.end, "no end: the step runs still, or was killed", None))
    return rows
