"""Well-formed messages, made from wire.h's declarations, for the tests to send and to break."""

from __future__ import annotations

import os
import struct
from typing import Any

from piolet import _wire

ffi: Any = _wire.ffi
lib: Any = ffi.dlopen(None)
HEADER = ffi.sizeof("struct piolet_header")


def start(
    definition: bytes,
    *,
    uid: int = 1000,
    gid: int = 1000,
    groups: tuple[int, ...] = (),
    job: int = 7,
    step: int = 0,
    timeout_ms: int = 30_000,
) -> bytes:
    """Return a START message."""
    message = ffi.new("struct piolet_start *")
    length = ffi.sizeof("struct piolet_start") + 4 * len(groups) + len(definition)
    message.header = (lib.PIOLET_MAGIC, lib.PIOLET_VERSION, lib.PIOLET_START, length, 0)
    message.plugin = lib.PIOLET_PLUGIN_ENVIRONMENT
    message.job, message.step, message.uid, message.gid = job, step, uid, gid
    message.groups, message.definition, message.timeout_ms = len(groups), len(definition), timeout_ms
    message.node = b"node1"
    return bytes(ffi.buffer(message)) + struct.pack(f"={len(groups)}I", *groups) + definition


GPUS_MAX = 4072


def gpus(text: bytes, nodes: int = 4, restarts: int = 1) -> bytes:
    """Return a GPUS message; `text` of GPUS_MAX bytes has no NUL behind it."""
    message = ffi.new("struct piolet_gpus *")
    message.header = (lib.PIOLET_MAGIC, lib.PIOLET_VERSION, lib.PIOLET_GPUS, ffi.sizeof("struct piolet_gpus"), 0)
    message.nodes, message.restarts = nodes, restarts
    ffi.memmove(message.gpus, text, len(text))
    return bytes(ffi.buffer(message))


def outcome(
    ended: list[tuple[int, int, int]], *, job: int = 7, step: int = 0, uid: int = 1000, restarts: int = 0,
    array: tuple[int, int] = (0, 0), end: int = 0, others: int = 0, node: bytes = b"node1",
    het_job: int = 0, size: int = ffi.sizeof("struct piolet_outcome"),
) -> bytes:  # fmt: skip
    """Return an OUTCOME message; `ended` has status, first and tasks of each way, and `size` cuts it."""
    message = ffi.new("struct piolet_outcome *")
    message.header = (lib.PIOLET_MAGIC, lib.PIOLET_VERSION, lib.PIOLET_OUTCOME, size, 0)
    message.job, message.step, message.uid, message.restarts = job, step, uid, restarts
    message.array, message.array_task = array
    message.het_job = het_job
    message.end, message.others, message.ways, message.node = end, others, len(ended), node
    for way, values in zip(message.ended, ended, strict=False):
        way.status, way.first, way.tasks = values
    return bytes(ffi.buffer(message))[:size]


def vet(plan: bytes) -> bytes:
    """Return a VET message."""
    message = ffi.new("struct piolet_vet *")
    length = ffi.sizeof("struct piolet_vet") + len(plan)
    message.header = (lib.PIOLET_MAGIC, lib.PIOLET_VERSION, lib.PIOLET_VET, length, 0)
    message.plan = len(plan)
    return bytes(ffi.buffer(message)) + plan


def record(definition: bytes, dependencies: list[tuple[int, bytes, bytes]]) -> bytes:
    """Return a record; a dependency is kind, name and value, and FILE ones get the file's true status."""
    body = b""
    for kind, name, value in dependencies:
        size = ffi.sizeof("struct piolet_dependency")
        text = name + b"\0" + value + b"\0"
        padded = size + len(text) + -(size + len(text)) % 8
        dependency = ffi.new("struct piolet_dependency *")
        dependency.kind, dependency.length = kind, padded
        dependency.name, dependency.value = len(name) + 1, len(value) + 1
        if kind == lib.PIOLET_DEP_FILE:
            status = os.stat(name)
            dependency.device, dependency.inode, dependency.size = status.st_dev, status.st_ino, status.st_size
            dependency.mtime_ns, dependency.ctime_ns = status.st_mtime_ns, status.st_ctime_ns
        body += (bytes(ffi.buffer(dependency)) + text).ljust(padded, b"\0")
    head = ffi.new("struct piolet_record *")
    length = ffi.sizeof("struct piolet_record") + len(body) + len(definition)
    fields = (lib.PIOLET_RECORD_MAGIC, lib.PIOLET_VERSION, length, len(dependencies), len(definition), 0)
    (head.magic, head.version, head.length, head.dependencies, head.definition, head.reserved) = fields
    return bytes(ffi.buffer(head)) + body + definition
