"""The layout of a step's data, version 1: which tables there are, their columns, units and meanings.

    ROOT/DATE/JOB.STEP[-rN]/    DATE: the day of the step's start in UTC, 2026-11-29; N: how often the job was restarted
        meta.json       what the step is: META says what stands in it
        TABLE.parquet   one file for each table of TABLES that has rows; a table without rows has no file

Any reader of Parquet reads them. Times are UTC in microseconds; missing values are nulls, never zeros. What a table
could have told and did not stands in `quality`, with a reason. A column's unit and text are in its metadata under
"unit" and "text", and the schema's metadata has the version under "piolet.layout". "1" is a share of 0 to 1.

`--score` writes its samples as `samples/dataset.py` says; `gpu` and `host` have the same columns, and more of the host.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa  # type: ignore[import-untyped]

from piolet.api import GPU_QUANTITIES, HOST_QUANTITIES, Quantity

VERSION = 1
VERSION_KEY = b"piolet.layout"
META_FILE, SUFFIX = "meta.json", ".parquet"
BINS = 600  # of a roll-up: as many as a page has room for
HOST = -1  # in place of a GPU's index: the node itself

_TEXT = pa.dictionary(pa.int32(), pa.string())
_TIME = pa.timestamp("us", "UTC")


@dataclass(frozen=True)
class Column:
    """A column: its type in Arrow, its unit ('' where it has none) and what it means."""

    name: str
    kind: pa.DataType
    unit: str
    text: str

    def field(self) -> pa.Field:
        """Return it as Arrow has it."""
        return pa.field(self.name, self.kind, metadata={"unit": self.unit, "text": self.text})


def _column(name: str, kind: pa.DataType, text: str, unit: str = "") -> Column:
    return Column(name, kind, unit, text)


def _of(quantities: tuple[Quantity, ...]) -> tuple[Column, ...]:
    exact = ("energy", "memory_used", "memory", "memory_anon", "memory_file")
    kinds = {name: pa.float64() for name in exact}
    return tuple(Column(q.name, kinds.get(q.name, pa.float32()), q.unit, q.text) for q in quantities)


MORE_OF_HOST = (
    Quantity("memory_file", "B", "page cache of the step"),
    Quantity("memory_limit", "B", "memory that the step may have"),
    Quantity("out_of_memory", "count", "processes of the step that the kernel ended for lack of memory, in the span"),
    Quantity("processes", "count", "processes of the step"),
    Quantity("blocked", "count", "of which wait in the kernel and cannot be ended (state D)"),
    Quantity("file_read", "B/s", "read by the step's processes from any file system (/proc/PID/io, rchar)"),
    Quantity("file_write", "B/s", "written by the step's processes to any file system (/proc/PID/io, wchar)"),
    Quantity("node_power", "W", "power of the whole node, where its hardware tells"),
    Quantity("cpu_power", "W", "power of the node's processors, where its hardware tells"),
    Quantity("retransmits", "1/s", "TCP segments that the node sent again: of the node, not of the step"),
)
_SAMPLE = (
    _column("time", _TIME, "end of the sample"),
    _column("span", pa.float32(), "what the sample covers: values are means over it", "s"),
    _column("node", _TEXT, "name of the node"),
)
_WHERE = (
    _column("node", _TEXT, "name of the node; null: of the step as a whole"),
    _column("subject", _TEXT, "of which part: the UUID of a GPU, a port, a mount point, a task; null: none"),
)

TABLES: dict[str, tuple[Column, ...]] = {
    "gpu": (
        *_SAMPLE,
        _column("gpu", pa.uint16(), "index of the GPU in this file"),
        _column("uuid", _TEXT, "its UUID"),
        *_of(GPU_QUANTITIES),
    ),
    "host": (*_SAMPLE, *_of(HOST_QUANTITIES), *_of(MORE_OF_HOST)),
    "io": (
        *_SAMPLE,
        _column("mount", _TEXT, "mount point of the file system"),
        _column("kind", _TEXT, "lustre, nfs, or the type of a local file system"),
        _column("scope", _TEXT, "step: of the step; node: of all that runs on the node"),
        _column("read", pa.float32(), "read", "B/s"),
        _column("write", pa.float32(), "written", "B/s"),
        _column("read_operations", pa.float32(), "reads", "1/s"),
        _column("write_operations", pa.float32(), "writes", "1/s"),
        _column("metadata_operations", pa.float32(), "opens, stats, and what else moves no data", "1/s"),
        _column("wait", pa.float32(), "how long an operation took, on average", "s"),
    ),
    "net": (
        *_SAMPLE,
        _column("port", _TEXT, "hsn0, mlx5_0/1, eth0"),
        _column("kind", _TEXT, "cxi, infiniband or ethernet"),
        _column("rate", pa.float32(), "what the port can carry in one direction", "B/s"),
        _column("rx", pa.float32(), "received: of the node, not of the step", "B/s"),
        _column("tx", pa.float32(), "sent: of the node, not of the step", "B/s"),
        _column("errors", pa.float32(), "errors that the port counted", "1/s"),
        _column("retries", pa.float32(), "packets that were sent again", "1/s"),
        _column("stalled", pa.float32(), "share of time in which the port could not send", "1"),
    ),
    "events": (
        _column("time", _TIME, "when it happened"),
        *_WHERE,
        _column("kind", _TEXT, "kind of the event, as docs/events.md has it"),
        _column("source", _TEXT, "who says it: kernel, root, site or user"),
        _column("severity", _TEXT, "info, warning or error"),
        _column("text", pa.string(), "one sentence"),
        _column("body", pa.string(), "the record's body, as JSON"),
    ),
    "marks": (
        _column("time", _TIME, "when the application said it"),
        *_WHERE,
        _column("name", _TEXT, "name of the figure: loss, step, tokens_per_second"),
        _column("value", pa.float64(), "its value; null: it was no number (NaN)"),
        _column("origin", _TEXT, "command, output, tensorboard or wandb: the application's own word in every case"),
    ),
    "quality": (
        *_WHERE,
        _column("source", _TEXT, "name of the source of figures"),
        _column("start", _TIME, "from when it told nothing"),
        _column("end", _TIME, "until when"),
        _column("reason", _TEXT, "why"),
        _column("values", pa.uint32(), "how many values are missing for it", "count"),
    ),
    "rollup": (
        _column("bin", pa.uint16(), f"one of {BINS} of equal length, from the step's start to its end"),
        _column("bins", pa.uint16(), "how many bins it is of: more than 1 of a short step, and of thousands of GPUs"),
        _column("node", _TEXT, "name of the node"),
        _column("gpu", pa.int16(), f"index of the GPU; {HOST}: the host"),
        _column("quantity", _TEXT, "name of a quantity of `gpu` or `host`"),
        _column("mean", pa.float32(), "mean over what samples cover of it, in the quantity's unit"),
        _column("least", pa.float32(), "least of its samples"),
        _column("most", pa.float32(), "largest of its samples"),
        _column("covered", pa.float32(), "share of it that samples cover", "1"),
    ),
    "findings": (
        _column("detector", _TEXT, "name of what found it"),
        _column("version", pa.uint16(), "its version"),
        *_WHERE,
        _column("start", _TIME, "from when"),
        _column("end", _TIME, "until when"),
        _column("effect", pa.float32(), "how large it is, in `unit`"),
        _column("unit", _TEXT, "unit of the effect"),
        _column(
            "confidence", pa.float32(), "1 minus the upper bound of measured false positives; null: not measured", "1"
        ),
        _column("text", pa.string(), "what was found, one sentence"),
        _column("advice", pa.string(), "what to do"),
        _column("evidence", pa.string(), "the figures behind it, as JSON: an object"),
    ),
    "judged": (
        _column("detector", _TEXT, "name of a detector that looked at the step"),
        _column("version", pa.uint16(), "its version"),
        _column("state", _TEXT, "found: see `findings`; nothing; unknown: it cannot tell; failed"),
        _column("reason", pa.string(), "why it cannot tell, or how it failed"),
    ),
}

# What meta.json has; every key but "version", "job", "step" and "start" may be missing, which means: not known.
META = {
    "version": "of this layout",
    "cluster": "Slurm's ClusterName",
    "job": "number of the job, as text",
    "step": "number or name of the step: 0, batch, extern",
    "restarts": "how often the job was restarted before",
    "array_job": "number of the array's job, and array_task the task's",
    "het_job": "number of the heterogeneous job's leader, and het_component the part's",
    "uid": "number of the account",
    "user": "its name",
    "account": "Slurm's account",
    "partition": "Slurm's partition",
    "name": "the job's name",
    "command": "what srun was told to run",
    "nodes": "names of all nodes of the step; those without data too",
    "start": "nanoseconds since 1970",
    "end": "nanoseconds since 1970; not there: it runs, or nobody knows",
    "state": "Slurm's word at the end: COMPLETED, FAILED, TIMEOUT, OUT_OF_MEMORY, NODE_FAIL, CANCELLED",
    "exit": "exit status, and signal",
    "environment": "image, digest, file; names and values of variables, secrets by name only",
    "vetting": "outcome, protocol, nodes left out and why",
    "score": "where the data set of --score lies",
    "devices": "GPUs by node: a list of {uuid, name, memory, power_limit, ..., gpu: index}, as collectors know them; "
    "without `gpu` the place in the list is the index",
    "clock_offsets": "seconds that each node's clock is ahead, with the time of the measurement",
    "simulated": "the mark of simulated figures; '' or not there: all are real",
    "interval": "seconds between samples",
}


def schema(table: str) -> pa.Schema:
    """Return the schema of a table of TABLES."""
    columns = [column.field() for column in TABLES[table]]
    return pa.schema(columns, metadata={VERSION_KEY: str(VERSION).encode()})
