"""Slurm through the libslurm that is installed, compiled against its headers (slurm_ext.c).

Every function may be called from any thread; while Slurm answers, other threads run. Each takes as long as Slurm's
MessageTimeout at most, some times over where a slurmctld does not answer. The last list of each kind is kept: slurmctld
is asked each time, and where it says that nothing has changed, that list is the answer. All raise SlurmError.
"""

from __future__ import annotations

import functools
import os
import re
import sys
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from pyslurm_ext.errors import SlurmError
from pyslurm_ext.records import (
    NODE_FLAGS,
    NODE_STATES,
    PARTITION_STATES,
    STEP_NAMES,
    TEXTS,
    Job,
    Node,
    Partition,
    Snapshot,
    Step,
)  # fmt: skip

# Slurm's own plugins, such as that for munge, take their symbols from its library.
_flags = sys.getdlopenflags()
sys.setdlopenflags(os.RTLD_GLOBAL | os.RTLD_NOW)
try:
    from pyslurm_ext._slurm import ffi, lib
finally:
    sys.setdlopenflags(_flags)

_NOTHING = -(1 << 63)
_CONFIGS = ("/etc/slurm/slurm.conf", "/etc/slurm-llnl/slurm.conf", "/run/slurm/conf/slurm.conf")
_Record = TypeVar("_Record", Job, Node, Step, Partition)
_lock = threading.Lock()
_ready: list[str] = []
_answers: dict[Any, tuple[int, list[Any]]] = {}


def version() -> tuple[int, int, int]:
    """Return the version of Slurm that this was compiled against."""
    number = lib.ext_version()
    return number >> 16 & 0xFF, number >> 8 & 0xFF, number & 0xFF


def jobs() -> list[Job]:
    """Return every job that slurmctld knows, those that ended a short while ago included."""
    return _jobs(free=lib.ext_free)


def job(number: int) -> Job:
    """Return one job; of a job array the first record that slurmctld has."""
    return _load(Job, f"show job {number}", lambda table: lib.ext_jobs(table, _number(number), ffi.new("int64_t *")))[0]


def nodes() -> list[Node]:
    """Return every node."""
    return _list(Node, "list nodes", lambda table, since: lib.ext_nodes(table, ffi.NULL, since))


def node(name: str) -> Node:
    """Return one node."""
    found = _load(Node, f"show node {name}", lambda table: lib.ext_nodes(table, _text(name), ffi.new("int64_t *")))
    if not found:
        raise SlurmError(f"cannot show node {name}: Slurm has no node of that name", lib.ESLURM_INVALID_NODE_NAME)
    return found[0]


def steps(job_id: int | None = None) -> list[Step]:
    """Return the steps that run, of one job or of all."""
    what = "list steps" if job_id is None else f"list steps of job {job_id}"
    return _load(Step, what, lambda table: lib.ext_steps(table, 0 if job_id is None else _number(job_id)))


def partitions() -> list[Partition]:
    """Return every partition."""
    return _list(Partition, "list partitions", lib.ext_partitions)


def snapshot() -> Snapshot:
    """Return jobs, nodes and partitions: asked for side by side, so sooner than one after the other."""
    _begin()
    with ThreadPoolExecutor(1) as aside:
        others = aside.submit(lambda: (nodes(), partitions()))
        # The largest answer comes to this thread; while it becomes records here, the other frees it.
        found = _jobs(free=lambda table: aside.submit(lib.ext_free, table))
        return Snapshot(found, *others.result())


def drain(names: Iterable[str] | str, reason: str) -> None:
    """Let nodes, a list of hosts or their names, take no new job; `reason` must say why."""
    if not reason.strip():
        raise SlurmError("cannot drain without a reason", hint="say what is wrong with the node")
    hosts = _hosts(names)
    _call(f"drain {hosts}", lambda: lib.ext_update_nodes(_text(hosts), 1, _text(reason), os.getuid()))


def resume(names: Iterable[str] | str) -> None:
    """Let nodes that were drained or down take jobs again."""
    hosts = _hosts(names)
    _call(f"resume {hosts}", lambda: lib.ext_update_nodes(_text(hosts), 0, ffi.NULL, 0))


def requeue(number: int, hold: bool = False) -> None:
    """Put a batch job back into its queue, held where `hold` says so."""
    _call(f"requeue job {number}", lambda: lib.ext_requeue(_number(number), hold))


def set_comment(number: int, comment: str) -> None:
    """Set a job's comment."""
    _call(f"set the comment of job {number}", lambda: lib.ext_comment(_number(number), _text(comment)))


def expand(hosts: str) -> list[str]:
    """Return the hosts of a list such as 'node[1-3,7]', in its order."""
    _begin()
    # Slurm takes a bracket that does not match for a part of a name.
    if not hosts.strip() or re.search(r"[][]", re.sub(r"\[[^][]*\]", "", hosts)):
        raise SlurmError(f"'{hosts[:200]}' is no list of hosts", hint="write node[1-3,7] or node1,node2")
    count = ffi.new("size_t *")
    data = lib.ext_expand(_text(hosts), count)
    if data == ffi.NULL:
        raise SlurmError(f"'{hosts[:200]}' is no list of hosts", hint="write node[1-3,7] or node1,node2")
    try:
        found, at = [], 0
        for _ in range(count[0]):
            name = ffi.string(data + at)
            found.append(name.decode("utf-8", "replace"))
            at += len(name) + 1
        return found
    finally:
        lib.free(data)


def compress(hosts: Iterable[str]) -> str:
    """Return the shortest list of these hosts, sorted, each once."""
    _begin()
    text = ",".join(hosts)
    data = lib.ext_compress(_text(text))
    if data == ffi.NULL:
        raise SlurmError(f"'{text[:200]}' is no list of hosts")
    try:
        return str(ffi.string(data).decode("utf-8", "replace"))
    finally:
        lib.free(data)


# -- how


def _jobs(free: Callable[[Any], object]) -> list[Job]:
    return _list(Job, "list jobs", lambda table, since: lib.ext_jobs(table, 0, since), free)


def _list(
    kind: type[_Record], what: str, fill: Callable[[Any, Any], int], free: Callable[[Any], object] = lib.ext_free
) -> list[_Record]:
    """Return all records of a kind: those that the last answer had, where slurmctld says that nothing has changed."""
    before, records = _answers.get(kind, (0, []))
    since = ffi.new("int64_t *", before)
    try:
        records = _load(kind, what, lambda table: fill(table, since), free)
    except SlurmError as error:
        if error.code != lib.SLURM_NO_CHANGE_IN_DATA:
            raise
    else:
        _answers[kind] = (since[0], records)
    return list(records)


def _load(
    kind: type[_Record], what: str, fill: Callable[[Any], int], free: Callable[[Any], object] = lib.ext_free
) -> list[_Record]:
    _begin()
    table = ffi.new("struct ext_table *")
    _check(what, fill(table))
    try:
        rows = table.rows
        data: str = bytes(ffi.buffer(table.strings, table.length)).decode("utf-8", "replace")
        columns = [memoryview(ffi.buffer(table.cells[at], 8 * rows)).cast("q").tolist() for at in range(table.columns)]
        gaps = list(table.gaps)
    finally:
        free(table)
    if not rows:
        return []
    strings: list[str | None] = [*data.split("\0")]
    strings[-1] = None  # which a text that is not there names, as -1
    texts = TEXTS[kind]
    found: list[Iterable[Any]] = []
    for name, column, gap in zip(kind._fields, columns, gaps, strict=False):
        if name in texts:
            found.append(map(strings.__getitem__, column))
        elif gap:
            found.append([None if value == _NOTHING else value for value in column])
        else:
            found.append(column)
    # As kind._make, less a call in Python for each row.
    return list(map(functools.partial(tuple.__new__, kind), zip(*_named(kind, found), strict=True)))


def _named(kind: type[Any], columns: list[Iterable[Any]]) -> list[Iterable[Any]]:
    """Put names in place of Slurm's numbers."""
    at = {name: number for number, name in enumerate(kind._fields)}
    if kind is Node:
        states = list(columns[at["state"]])
        columns.append([_node_flags(value) for value in states])
        columns[at["state"]] = [_node_state(value) for value in states]
        return columns
    name = _partition_state if kind is Partition else _job_state
    columns[at["state"]] = [name(value) for value in columns[at["state"]]]
    if kind is Job:
        columns[at["reason"]] = [_job_reason(value) for value in columns[at["reason"]]]
    if kind is Step:
        columns[at["step_id"]] = [STEP_NAMES.get(value, value) for value in columns[at["step_id"]]]
    if kind is Partition:
        columns[at["default"]] = [bool(value) for value in columns[at["default"]]]
    return columns


@functools.cache
def _job_state(value: int) -> str:
    return str(ffi.string(lib.ext_job_state(value)).decode("ascii", "replace"))


@functools.cache
def _job_reason(value: int) -> str:
    return str(ffi.string(lib.ext_job_reason(value)).decode("ascii", "replace"))


@functools.cache
def _node_state(value: int) -> str:
    base = value & 0xF
    return NODE_STATES[base] if base < len(NODE_STATES) else f"STATE_{base}"


@functools.cache
def _node_flags(value: int) -> frozenset[str]:
    return frozenset(NODE_FLAGS.get(bit, f"FLAG_{bit}") for bit in range(4, 32) if value >> bit & 1)


def _partition_state(value: int) -> str:
    return PARTITION_STATES.get(value, f"STATE_{value}")


def _hosts(names: Iterable[str] | str) -> str:
    hosts = names if isinstance(names, str) else ",".join(names)
    if not hosts.strip(", "):
        raise SlurmError("no node is named")
    return hosts


def _number(value: int) -> int:
    if not 0 < value < 0xFFFFFFFE:
        raise SlurmError(f"{value} is no number of a job", lib.ESLURM_INVALID_JOB_ID)
    return value


def _text(value: str) -> bytes:
    data = value.encode("utf-8", "surrogateescape")
    if b"\0" in data:
        raise SlurmError("a text for Slurm has a NUL in it")
    return data


def _call(what: str, act: Callable[[], int]) -> None:
    _begin()
    _check(what, act())


def _check(what: str, result: int) -> None:
    if result == 0:
        return
    code = ffi.errno
    why = ffi.string(lib.slurm_strerror(code)).decode("utf-8", "replace")
    hint = ""
    if code in (lib.ESLURM_ACCESS_DENIED, lib.ESLURM_USER_ID_MISSING):
        hint = "only Slurm's administrators and operators may, or for a job its owner"
    elif "ontact" in why or "onnect" in why:
        hint = "is slurmctld up? scontrol ping tells"
    raise SlurmError(f"cannot {what}: {why}", code, hint)


def _begin() -> None:
    """Let libslurm read slurm.conf, once; it would end the process where there is none."""
    if _ready:
        return
    with _lock:
        if _ready:
            return
        named = os.environ.get("SLURM_CONF")
        if not any(map(os.path.exists, [named] if named else _CONFIGS)):
            where = named or " or ".join(_CONFIGS)
            raise SlurmError(f"there is no slurm.conf: {where}", hint="set SLURM_CONF, or install Slurm's client")
        said = ffi.new("char[]", 4096)
        if lib.ext_init(said, 4096):
            why = ffi.string(said).decode("utf-8", "replace").strip().splitlines()
            raise SlurmError(f"Slurm's configuration cannot be read: {why[-1] if why else 'it does not say why'}")
        _ready.append(named or "")
