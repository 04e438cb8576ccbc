"""The data set of a step: a directory with one Parquet file per node, or a journal where a node was not finished.

`finish` makes NODE.parquet (samples of GPUs) and NODE.host.parquet out of NODE.journal, in bounded memory, each
renamed into place whole. Whoever reads takes the journal where there is no Parquet file, so a killed step needs no
repair. Units and meanings are in the metadata of every column; the schema's metadata has the step's facts as JSON
under "piolet", the file's the sums of all samples under "piolet.summary". Missing values are nulls. Shares are rounded
to 1e-4 and rates to 13 bits: the counters are not better than that, and a file is a third of the size.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from piolet.api import GPU_QUANTITIES, HOST_QUANTITIES, Quantity
from piolet.base import files
from piolet.base.errors import ScoreError
from piolet.samples import journal
from piolet.samples.journals import BATCH, NodeFacts, joined, journal_chunks, known_of
from piolet.steps import identity

Array = np.ndarray[Any, np.dtype[Any]]

PARQUET, HOST_PARQUET = ".parquet", ".host.parquet"
ORIGIN, ORIGIN_MOST = "step.json", 64 << 10
_ROWS_PER_GROUP = 400_000
_EXACT = ("energy", "memory_used", "memory", "memory_anon")
_KEY, _SUMMARY = b"piolet", b"piolet.summary"
_WHOLE = {quantity.name: quantity for quantity in (*GPU_QUANTITIES, *HOST_QUANTITIES)}


@dataclass(frozen=True)
class Node:
    """The data of one node: `path` is a Parquet file or a journal.

    summary    sums of its samples, as score/rollup.py makes them; b"": there are none
    summed     the samples that these leave out begin here in the journal; 0: they are of all of them
    """

    path: Path
    facts: NodeFacts
    summary: bytes = b""
    summed: int = 0

    @property
    def is_summed(self) -> bool:
        """Whether nothing has to be read but the summary."""
        return bool(self.summary) and not self.summed

    @property
    def name(self) -> str:
        """The node's name."""
        return str(self.facts.header["node"])

    def chunks(self, columns: Sequence[str], host: bool = False, after: int = 0) -> Iterator[dict[str, Array]]:
        """Yield 'device', 'span' (s), 'end' (ns since 1970) and the columns, NaN for what is missing.

        after    of a journal: samples before that place are left out
        """
        if self.path.suffix == PARQUET:
            path = self.path if not host else self.path.with_name(self.path.stem + HOST_PARQUET)
            yield from _parquet_chunks(path, columns)
        else:
            yield from journal_chunks(self.path, "N" if host else "G", columns, after)


@dataclass(frozen=True)
class Dataset:
    """All nodes of a step."""

    directory: Path
    nodes: tuple[Node, ...]

    @property
    def simulated(self) -> str:
        """The mark of simulated figures; '' when all are real."""
        return next((text for node in self.nodes if (text := node.facts.header.get("simulated"))), "")

    @property
    def run(self) -> str:
        """The name of the run of a step that the first node was sampled in."""
        header = self.nodes[0].facts.header
        return identity.run_name(str(header["job"]), str(header["step"]), header.get("restarts", 0))

    @property
    def origin(self) -> dict[str, str]:
        """What srun knew of the step (cli/origin.py), '' being left out: name, command, environment, nodes, user."""
        try:
            known = json.loads(files.read_small(str(self.directory / ORIGIN), ORIGIN_MOST)[0])
        except (OSError, ValueError, RecursionError, files.NotRegularError):
            return {}
        items = known.items() if isinstance(known, dict) else ()
        return {str(name): text for name, text in items if isinstance(text, str) and text}

    @property
    def wanted(self) -> int:
        """How many nodes the step had; those that have no samples at all included."""
        return max(len(self.nodes), *(int(node.facts.header.get("nodes", 0)) for node in self.nodes))

    @property
    def is_stale(self) -> bool:
        """Whether a node has made its Parquet file, and removed its journal, since this was opened."""
        return not all(os.path.lexists(node.path) for node in self.nodes)

    @property
    def start(self) -> int:
        """When the first node began."""
        return min(node.facts.start for node in self.nodes)

    @property
    def end(self) -> int:
        """When the last node ended, or was last heard of."""
        return max(node.facts.end for node in self.nodes)


def open_dataset(directory: Path) -> Dataset:
    """Return the data set in `directory`. Raises ScoreError: there is none, or a file is not what it should be."""
    if not directory.is_dir():
        raise ScoreError(f"there is no directory {directory}")
    nodes: list[Node] | None = None
    while nodes is None:
        # Journals first: of a node that finishes meanwhile the Parquet file is found.
        journals = sorted(directory.glob("*" + journal.SUFFIX))
        finished = sorted(p for p in directory.glob("*" + PARQUET) if not p.name.endswith(HOST_PARQUET))
        names = {path.stem for path in finished}
        journals = [path for path in journals if path.stem not in names]
        try:
            nodes = [_parquet_node(path) for path in finished]
            nodes += [node for path in journals if (node := _journal_node(path)) is not None]
        except ScoreError:
            nodes = None
            if all(map(os.path.lexists, journals)):
                raise
    if not nodes:
        raise ScoreError(f"{directory} holds no samples", "a data set is a directory of *.parquet or *.journal files")
    return Dataset(directory, tuple(nodes))


def nodes_of(path: Path) -> int:
    """Return how many nodes the step had that a file of a data set is of; 0: it is not known. Raises ScoreError."""
    node = _parquet_node(path) if path.suffix == PARQUET else _journal_node(path)
    return 0 if node is None else int(node.facts.header.get("nodes", 0))


def _journal_node(path: Path) -> Node | None:
    known = known_of(path)
    return None if known is None else Node(path, *known)


def _parquet_node(path: Path) -> Node:
    try:
        metadata = pq.read_metadata(path).metadata or {}
        summary = base64.b64decode(metadata.get(_SUMMARY, b""), validate=True)
        return Node(path, NodeFacts(**json.loads(metadata[_KEY])), summary)
    except (OSError, pa.ArrowException, KeyError, ValueError, TypeError) as error:
        if isinstance(error, OSError) and error.errno:
            raise ScoreError(f"cannot read {path}: {os.strerror(error.errno)}") from None
        raise ScoreError(f"{path} is no file of a Piolet data set: {error}") from None


def _parquet_chunks(path: Path, columns: Sequence[str]) -> Iterator[dict[str, Array]]:
    try:
        with pq.ParquetFile(path) as file:
            known = set(file.schema_arrow.names)
            wanted = ["gpu", "span", "time", *(name for name in columns if name in known)]
            for batch in file.iter_batches(BATCH, columns=[name for name in wanted if name in known]):
                chunk = {
                    "device": batch["gpu"].to_numpy(zero_copy_only=False) if "gpu" in known else np.zeros(len(batch)),
                    "span": batch["span"].to_numpy(zero_copy_only=False),
                    "end": batch["time"].cast(pa.int64()).to_numpy(zero_copy_only=False) * 1000,
                }
                for name in columns:
                    found = name in known
                    chunk[name] = (
                        batch[name].to_numpy(zero_copy_only=False) if found else np.full(len(batch), np.nan, np.float32)
                    )
                yield chunk
    except (OSError, pa.ArrowException) as error:
        # Arrow's text repeats the path and the number of the error.
        why = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else error
        raise ScoreError(f"cannot read {path}: {why}") from None


# -- writing


def finish(path: Path, summary: Callable[[Node], bytes] | None = None) -> Path:
    """Make the Parquet files of a journal, remove the journal, and return the path of NODE.parquet.

    summary    makes the sums of its samples, if the journal does not have them: score.overview.summary_of

    Raises ScoreError: it is no journal, or it cannot be written; then the journal is left as it is.
    """
    node = _journal_node(path)
    if node is None:
        raise ScoreError(f"{path} holds nothing, not even a header")
    facts, sums = node.facts, node.summary if node.is_summed or summary is None else summary(node)
    if summary is None and not node.is_summed:
        sums = b""  # those of a part are of no use without the rest
    target = path.with_suffix(PARQUET)
    names = [quantity.name for quantity in GPU_QUANTITIES]
    hosts = [quantity.name for quantity in HOST_QUANTITIES]
    write(path.with_name(path.stem + HOST_PARQUET), facts, journal_chunks(path, "N", hosts), host=True)
    write(target, facts, journal_chunks(path, "G", names), summary=sums)
    path.unlink()
    return target


def write(
    target: Path, facts: NodeFacts, chunks: Iterator[dict[str, Array]], host: bool = False, summary: bytes = b""
) -> None:
    """Write samples, as `Node.chunks` yields them, into one Parquet file, which appears whole or not at all."""
    quantities = HOST_QUANTITIES if host else GPU_QUANTITIES
    layout = schema(quantities, facts, host)
    unfinished = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with files.replacing(str(target), str(unfinished)):
            with pq.ParquetWriter(unfinished, layout, compression="zstd", **_encodings(quantities)) as writer:
                for group in _groups(chunks):
                    writer.write_table(_table(group, layout, facts, host))
                if summary:
                    # Not among the schema's: Arrow would write these twice.
                    writer.add_key_value_metadata({_SUMMARY: base64.b64encode(summary)})
            with open(unfinished, "rb") as file:
                os.fsync(file.fileno())
    except (OSError, pa.ArrowException) as error:
        raise ScoreError(f"cannot write {target}: {error}") from None


def schema(quantities: Sequence[Quantity], facts: NodeFacts, host: bool) -> pa.Schema:
    """Return the columns, with unit and meaning in their metadata."""

    def column(name: str, kind: pa.DataType, unit: str, text: str) -> pa.Field:
        return pa.field(name, kind, metadata={"unit": unit, "text": text})

    columns = [
        column("time", pa.timestamp("us", "UTC"), "", "end of the sample"),
        column("span", pa.float32(), "s", "what the sample covers: values are means over it"),
        column("node", pa.dictionary(pa.int32(), pa.string()), "", "name of the node"),
    ]
    if not host:
        columns.append(column("gpu", pa.uint16(), "", "index of the GPU in this file"))
        columns.append(column("uuid", pa.dictionary(pa.int32(), pa.string()), "", "its UUID"))
    for quantity in quantities:
        kind = pa.float64() if quantity.name in _EXACT else pa.float32()
        columns.append(column(quantity.name, kind, quantity.unit, quantity.text))
    return pa.schema(columns, metadata={_KEY: facts.to_json()})


def _encodings(quantities: Sequence[Quantity]) -> dict[str, Any]:
    # Counters that only grow have no repeated values: a dictionary of them would be as large as they are.
    plain = [q.name for q in quantities if q.name == "energy"]
    return {
        "use_dictionary": ["node", "gpu", "uuid", "span", *(q.name for q in quantities if q.name not in plain)],
        "column_encoding": {"time": "DELTA_BINARY_PACKED", **dict.fromkeys(plain, "BYTE_STREAM_SPLIT")},
        "write_statistics": ["time", "gpu"],
    }


def _groups(chunks: Iterator[dict[str, Array]]) -> Iterator[dict[str, Array]]:
    parts: list[dict[str, Array]] = []
    for chunk in chunks:
        parts.append(chunk)
        if sum(len(part["end"]) for part in parts) >= _ROWS_PER_GROUP:
            yield joined(parts)
            parts = []
    if parts:
        yield joined(parts)


def _table(group: dict[str, Array], layout: pa.Schema, facts: NodeFacts, host: bool) -> pa.Table:
    order = np.lexsort((group["end"], group["device"]))  # by GPU, then by time: like values lie together
    size = len(order)
    zeros = np.zeros(size, np.int32)
    arrays = [
        pa.array(group["end"][order] // 1000, pa.timestamp("us", "UTC")),
        pa.array(np.round(group["span"][order].astype(np.float32), 4)),
        pa.DictionaryArray.from_arrays(zeros, [str(facts.header["node"])]),
    ]
    if not host:
        device = group["device"][order]
        arrays.append(pa.array(device.astype(np.uint16)))
        uuids = [d["uuid"] for d in facts.devices] or [""]
        arrays.append(pa.DictionaryArray.from_arrays(device.astype(np.int32), uuids))
    for name in layout.names[len(arrays) :]:
        values = group[name][order]
        kind = np.float64 if name in _EXACT else np.float32
        arrays.append(pa.array(rounded(values, _WHOLE[name].unit).astype(kind), from_pandas=True))
    return pa.Table.from_arrays(arrays, schema=layout)


def rounded(values: Array, unit: str) -> Array:
    """Return values at the precision that is kept."""
    if unit in ("1", "cores"):
        return np.round(values, 4)
    if unit == "B/s":
        mantissa, exponent = np.frexp(values)
        result: Array = np.ldexp(np.round(mantissa * 8192), exponent - 13)
        return result
    return np.round(values, 1) if unit in ("W", "J", "degC", "MHz") else values
