"""Messages over SOCK_SEQPACKET, with descriptors; between pioletd's processes JSON objects, decoded into dataclasses.

Who sends may be a process that a user has taken over. So what comes is of exactly the declared types, or it is a
WireError: no field too many or too few, no true for a 1, no number beyond 64 bits or that is none, no nesting that
Python's own parser gives up on. Known types: bool, int, float, str, X | None, list[X], tuple[X, ...],
tuple[X, Y], and dataclasses of these.
"""

from __future__ import annotations

import array
import contextlib
import dataclasses
import functools
import json
import math
import os
import socket
import types
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from piolet.base.errors import WireError

MESSAGE_MAX = 256 * 1024
"""Of the messages that a step's container needs, between the processes of pioletd."""

T = TypeVar("T")
Read = Callable[[object, str], Any]
_INT_MAX = 1 << 64
_ENCODER = json.JSONEncoder(default=vars)
_COMPACT = json.JSONEncoder(default=vars, separators=(",", ":"))


@dataclasses.dataclass
class Packet:
    """What was received; at the end of a `with` block the descriptors that are still in the list are closed.

    data   empty: the other side has ended
    cut    more descriptors came than were taken
    """

    data: bytes = b""
    descriptors: list[int] = dataclasses.field(default_factory=list)
    cut: bool = False

    def __enter__(self) -> Packet:
        return self

    def __exit__(self, *_: object) -> None:
        close_all(self.descriptors)


def send(channel: socket.socket, data: bytes, descriptors: Sequence[int] = ()) -> None:
    """Send one packet, with descriptors beside it. Raises OSError."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    channel.sendmsg([data], rights, socket.MSG_NOSIGNAL)


def receive(
    channel: socket.socket, limit: int, descriptors: int = 0, flags: int = 0, *, reset_ends: bool = True
) -> Packet:
    """Return the next packet, of which at most `limit` bytes and so many descriptors are taken.

    With `reset_ends` the end is an ordinary one, too, where the other side has left something of ours unread.

    Raises OSError; BlockingIOError: nothing has come.
    """
    taken = array.array("i")
    room = socket.CMSG_LEN(descriptors * taken.itemsize)
    try:
        # Not recv_fds, which leaves the flags out in Python 3.11.
        data, beside, said, _ = channel.recvmsg(limit, room, flags)
    except ConnectionResetError:
        if reset_ends:
            return Packet()
        raise
    for level, kind, payload in beside:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            taken.frombytes(payload[: len(payload) - len(payload) % taken.itemsize])
    return Packet(data, list(taken), bool(said & socket.MSG_CTRUNC))


def close_all(descriptors: Iterable[int]) -> None:
    """Close every descriptor."""
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)


def encode(value: Any, *, compact: bool = False) -> bytes:
    """Return the message that is a dataclass, or a dictionary with some of its fields; `compact`: without spaces."""
    return (_COMPACT if compact else _ENCODER).encode(value).encode()


def learn(*kinds: type) -> None:
    """Learn these dataclasses, which takes some tenths of a millisecond: before a fork of who has no time for it."""
    for kind in kinds:
        _reader(kind)


def parse(data: bytes | str) -> object:
    """Return the JSON value in a message. Raises WireError."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise WireError(f"a message is no JSON: {str(error)[:200]}") from None


def decode(kind: type[T], data: bytes | str) -> T:
    """Return the `kind` in a message; fields with a default may be left out. Raises WireError."""
    value = parse(data)
    read: Read = _reader(cast(Any, kind))
    result: T = read(value, kind.__name__)
    return result


@functools.cache
def _reader(kind: Any) -> Read:
    """Return what makes a value of the type `kind` of a JSON value, of which messages speak by the second argument."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        (one,) = (_reader(one) for one in arguments if one is not type(None))
        return lambda value, where: None if value is None else one(value, where)
    if origin is tuple and arguments[-1] is not Ellipsis:
        return _fixed(tuple(map(_reader, arguments)), texts=set(arguments) == {str})
    if origin in (list, tuple):
        return _array(origin, _reader(arguments[0]), arguments[0])
    if dataclasses.is_dataclass(kind):
        return _object(kind)
    return {bool: _exactly(bool), str: _exactly(str), int: _whole, float: _number}[kind]


def _object(kind: Any) -> Read:
    hints = get_type_hints(kind)
    fields = dataclasses.fields(kind)
    readers = {field.name: _reader(hints[field.name]) for field in fields}
    missing = dataclasses.MISSING
    needed = {field.name for field in fields if field.default is missing and field.default_factory is missing}

    def read(value: object, where: str) -> Any:
        if not isinstance(value, dict):
            raise _wrong(where, "an object", value)
        if not needed <= value.keys() <= readers.keys():
            names = sorted(needed - value.keys()) or sorted(map(str, value.keys() - readers.keys()))
            raise WireError(f"a message is malformed: {where} lacks, or has besides: {', '.join(names)[:200]}")
        return kind(**{name: readers[name](item, name) for name, item in value.items()})

    return read


def _array(kind: Any, reader: Read, of: Any) -> Read:
    def read(value: object, where: str) -> Any:
        if not isinstance(value, list):
            raise _wrong(where, "an array", value)
        if of is str and set(map(type, value)) <= {str}:  # in one go: a driver has a hundred names
            return kind(value)
        return kind([reader(item, where) for item in value])

    return read


def _fixed(readers: tuple[Read, ...], texts: bool) -> Read:
    def read(value: object, where: str) -> Any:
        if not isinstance(value, list) or len(value) != len(readers):
            raise _wrong(where, f"an array of {len(readers)}", value)
        if texts and set(map(type, value)) == {str}:
            return tuple(value)
        return tuple(reader(item, where) for reader, item in zip(readers, value, strict=True))

    return read


def _exactly(kind: type) -> Read:
    def read(value: object, where: str) -> Any:
        if type(value) is not kind:
            raise _wrong(where, kind.__name__, value)
        return value

    return read


def _whole(value: object, where: str) -> int:
    if type(value) is not int:
        raise _wrong(where, "int", value)
    if not -_INT_MAX < value < _INT_MAX:
        raise WireError(f"a message is malformed: {where} is a number beyond 64 bits")
    return value


def _number(value: object, where: str) -> float:
    if type(value) is int:
        return float(_whole(value, where))
    if type(value) is not float or not math.isfinite(value):
        raise _wrong(where, "float", value)
    return value


def _wrong(where: str, wanted: str, value: object) -> WireError:
    return WireError(f"a message is malformed: {where} is not {wanted} but {type(value).__name__}")
