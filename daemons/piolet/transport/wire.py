"""Messages between the plugins and pioletd, as wire.h declares them.

The structs and the numbers come from spank/wire.h through `piolet._wire`, which is made from that very file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from piolet import _wire
from piolet.base.errors import WireError

_ffi: Any = _wire.ffi
_lib: Any = _ffi.dlopen(None)

START_MAX: int = _lib.PIOLET_START_MAX
ENVIRONMENT_MAX: int = _lib.PIOLET_ENVIRONMENT_MAX
PLUGIN_ENVIRONMENT: int = _lib.PIOLET_PLUGIN_ENVIRONMENT
PLUGIN_SCORE: int = _lib.PIOLET_PLUGIN_SCORE
_HEADER = _ffi.sizeof("struct piolet_header")
_START = _ffi.sizeof("struct piolet_start")
_VET = _ffi.sizeof("struct piolet_vet")
_GPU = re.compile(r"[0-9]{1,3}|(?:GPU|MIG)-[0-9A-Za-z/-]{1,80}")
DECISION: int = _lib.PIOLET_DECISION
VET_MAX: int = _VET + _lib.PIOLET_DEFINITION_MAX


@dataclass(frozen=True)
class Start:
    """START: a step that wants an environment, or is scored. Times in milliseconds."""

    plugin: int
    job: int
    step: int
    uid: int
    gid: int
    groups: list[int]
    definition: bytes
    timeout_ms: int
    node: str


def decode_start(data: bytes, plugin: int = PLUGIN_ENVIRONMENT) -> Start:
    """Return the START message of that plugin in `data`, all of which it must be. Raises WireError."""
    if len(data) < _HEADER:
        raise WireError(f"a message of {len(data)} bytes is none")
    if len(data) > START_MAX:
        raise WireError(f"a message of more than {START_MAX} bytes is refused")
    header = _ffi.from_buffer("struct piolet_header *", data[:_HEADER])
    if header.magic != _lib.PIOLET_MAGIC:
        raise WireError("this is not a message of Piolet")
    if header.version != _lib.PIOLET_VERSION:
        raise WireError(
            f"the plugin speaks version {header.version} of the protocol, pioletd version {_lib.PIOLET_VERSION}",
            "install the same version of the plugins and of pioletd on this node",
        )
    if header.kind != _lib.PIOLET_START or header.reserved != 0:
        raise WireError(f"a message of the kind {header.kind} is not expected here")
    if header.length != len(data) or len(data) < _START:
        raise WireError("a START message is cut short")
    start = _ffi.from_buffer("struct piolet_start *", data[:_START])
    if start.groups > _lib.PIOLET_GROUPS_MAX or start.definition > _lib.PIOLET_DEFINITION_MAX:
        raise WireError("a START message has impossible lengths")
    if _START + 4 * start.groups + start.definition != len(data):
        raise WireError("the lengths in a START message do not add up")
    if start.plugin != plugin:
        raise WireError(f"a START message names the unknown plugin {start.plugin}")
    if not 0 < start.timeout_ms <= 3_600_000:
        raise WireError("a START message has an impossible timeout")
    groups_end = _START + 4 * start.groups
    groups = list(_ffi.from_buffer("uint32_t[]", data[_START:groups_end])) if start.groups else []
    node = _ffi.string(start.node, 64)
    return Start(
        start.plugin,
        start.job,
        start.step,
        start.uid,
        start.gid,
        groups,
        data[groups_end:],
        start.timeout_ms,
        node.decode("ascii", "replace"),
    )


@dataclass(frozen=True)
class Gpus:
    """GPUS: what a scored step's tasks tell. `names` are UUIDs or numbers, none where the step has none; `nodes` is the
    step's number of them, 0 where it is not known; `restarts` how often the job was requeued."""

    names: tuple[str, ...]
    nodes: int
    restarts: int


def decode_gpus(data: bytes) -> Gpus:
    """Return a GPUS message. Raises WireError."""
    size = _ffi.sizeof("struct piolet_gpus")
    if len(data) != size:
        raise WireError(f"a GPUS message cannot have {len(data)} bytes")
    message = _ffi.from_buffer("struct piolet_gpus *", data)
    header = message.header
    if (header.magic, header.version, header.kind, header.length, header.reserved) != (
        _lib.PIOLET_MAGIC,
        _lib.PIOLET_VERSION,
        _lib.PIOLET_GPUS,
        size,
        0,
    ):
        raise WireError("this is not a GPUS message of Piolet")
    text = _ffi.string(message.gpus, _ffi.sizeof(message.gpus)).decode("ascii", "replace")
    names = tuple(name for name in (part.strip() for part in text.split(",")) if _GPU.fullmatch(name))
    return Gpus(names, message.nodes, message.restarts)


@dataclass(frozen=True)
class Ended:
    """So many tasks of a step ended alike on a node: status as of wait(2), the rank of the first of them."""

    status: int
    first: int
    tasks: int


@dataclass(frozen=True)
class Outcome:
    """OUTCOME: how the tasks of a step ended on a node.

    array   of a job array its number and which of its jobs this is, or None
    het_job of a component of a heterogeneous job that job, which is its first component, as srun said; else None
    end     when the job's time is over, seconds since 1970; 0: not known
    others  tasks that ended in still other ways
    """

    job: int
    step: int
    uid: int
    restarts: int
    array: tuple[int, int] | None
    end: int
    others: int
    node: str
    ended: tuple[Ended, ...]
    het_job: int | None = None


OUTCOME_BYTES: int = _ffi.sizeof("struct piolet_outcome")
OUTCOME_LEAST: int = _lib.PIOLET_OUTCOME_LEAST


def decode_outcome(data: bytes) -> Outcome:
    """Return an OUTCOME message. Raises WireError."""
    size = len(data)
    if size not in (OUTCOME_LEAST, OUTCOME_BYTES):
        raise WireError(f"an OUTCOME message cannot have {size} bytes")
    one = _ffi.from_buffer("struct piolet_outcome *", data.ljust(OUTCOME_BYTES, b"\0"))
    header = one.header
    if (header.magic, header.version, header.kind, header.length, header.reserved) != (
        _lib.PIOLET_MAGIC, _lib.PIOLET_VERSION, _lib.PIOLET_OUTCOME, size, 0,
    ):  # fmt: skip
        raise WireError("this is not an OUTCOME message of Piolet")
    if not one.job or one.ways > _lib.PIOLET_WAYS_MAX:
        raise WireError("an OUTCOME message has impossible numbers")
    ended = tuple(Ended(way.status, way.first, way.tasks) for way in one.ended[0 : one.ways])
    node = _ffi.string(one.node, _ffi.sizeof(one.node)).decode("ascii", "replace")
    array = (one.array, one.array_task) if one.array else None
    het_job = one.het_job if one.het_job not in (0, one.job) else None
    return Outcome(one.job, one.step, one.uid, one.restarts, array, one.end, one.others, node, ended, het_job)


def is_decision(data: bytes) -> bool:
    """Return whether a message that comes where VET messages do says that it is a DECISION."""
    return len(data) >= _HEADER and bool(
        _ffi.from_buffer("struct piolet_header *", data[:_HEADER]).kind == _lib.PIOLET_DECISION
    )


def encode_decision(text: str) -> bytes:
    """Return a DECISION message. Raises WireError: it is too long."""
    data = text.encode("utf-8")
    if not 0 < len(data) <= _lib.PIOLET_DEFINITION_MAX:
        raise WireError(f"a decision of {len(data)} bytes is none")
    message = _ffi.new("struct piolet_vet *")
    _fill_header(message.header, _lib.PIOLET_DECISION, _VET + len(data))
    message.plan = len(data)
    return bytes(_ffi.buffer(message)) + data


def decode_vet(data: bytes, kind: int = _lib.PIOLET_VET) -> str:
    """Return the plan in a VET message, or the text in a DECISION, all of which `data` must be. Raises WireError."""
    if len(data) < _VET or len(data) > VET_MAX:
        raise WireError(f"a VET message cannot have {len(data)} bytes")
    vet = _ffi.from_buffer("struct piolet_vet *", data[:_VET])
    header = vet.header
    if header.magic != _lib.PIOLET_MAGIC or header.kind != kind:
        raise WireError("this is not a VET message of Piolet")
    if header.version != _lib.PIOLET_VERSION:
        raise WireError(f"the vet step speaks version {header.version} of the protocol, not {_lib.PIOLET_VERSION}")
    if header.length != len(data) or header.reserved or vet.reserved or not vet.plan or _VET + vet.plan != len(data):
        raise WireError("the lengths in a VET message do not add up")
    try:
        return data[_VET:].decode("utf-8")
    except UnicodeDecodeError:
        raise WireError("the plan in a VET message is not UTF-8") from None


def encode_ready(*, namespaces: bool, environment: int, workdir: str, entrypoint: str, made_in: int = 0) -> bytes:
    """Return a READY message. `environment` is the size of the environment file in bytes, 0 without one; `made_in` the
    number of the job's own mount namespace, if the container was made there."""
    ready = _ffi.new("struct piolet_ready *")
    _fill_header(ready.header, _lib.PIOLET_READY, _ffi.sizeof("struct piolet_ready"))
    if namespaces:
        ready.descriptors |= _lib.PIOLET_HAS_USER_NS | _lib.PIOLET_HAS_MOUNT_NS
    if environment:
        ready.descriptors |= _lib.PIOLET_HAS_ENVIRONMENT
        ready.environment = environment
    ready.header.reserved = made_in
    ready.workdir = _text(workdir, 4096)
    ready.entrypoint = _text(entrypoint, 256)
    return bytes(_ffi.buffer(ready))


def encode_error(message: str, hint: str | None) -> bytes:
    """Return an ERROR message; text that is too long is cut."""
    error = _ffi.new("struct piolet_error *")
    _fill_header(error.header, _lib.PIOLET_ERROR, _ffi.sizeof("struct piolet_error"))
    error.message = _cut(message)
    error.hint = _cut(hint or "")
    return bytes(_ffi.buffer(error))


def decode_error(data: bytes) -> str:
    """Return the sentence in an ERROR message, which a task sends when it did not start. Raises WireError."""
    size = _ffi.sizeof("struct piolet_error")
    if len(data) != size:
        raise WireError(f"an ERROR message cannot have {len(data)} bytes")
    error = _ffi.from_buffer("struct piolet_error *", data)
    found = (error.header.magic, error.header.version, error.header.kind, error.header.length, error.header.reserved)
    if found != (_lib.PIOLET_MAGIC, _lib.PIOLET_VERSION, _lib.PIOLET_ERROR, size, 0):
        raise WireError("this is not an ERROR message of Piolet")
    return bytes(_ffi.buffer(error.message)).partition(b"\0")[0].decode("utf-8", "replace")


def encode_environment(set_env: dict[str, str], unset_env: tuple[str, ...]) -> bytes:
    """Return the environment file: NUL-terminated "+NAME=VALUE" and "-NAME". Raises WireError: too long."""
    entries = [f"-{name}" for name in unset_env if name and "=" not in name]
    entries += [f"+{name}={value}" for name, value in set_env.items()]
    data = b"".join(entry.encode("utf-8", "surrogateescape") + b"\0" for entry in entries)
    if len(data) > ENVIRONMENT_MAX:
        raise WireError(f"the environment has {len(data)} bytes, more than {ENVIRONMENT_MAX}")
    return data


def _fill_header(header: Any, kind: int, length: int) -> None:
    header.magic = _lib.PIOLET_MAGIC
    header.version = _lib.PIOLET_VERSION
    header.kind = kind
    header.length = length


def _text(text: str, size: int) -> bytes:
    data = text.encode("utf-8", "surrogateescape")
    if len(data) >= size or b"\0" in data:
        raise WireError(f"a text of {len(data)} bytes does not fit into {size}")
    return data


def _cut(text: str) -> bytes:
    return text.replace("\0", " ").encode("utf-8", "replace")[:1000].decode("utf-8", "ignore").encode()
