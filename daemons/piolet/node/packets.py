"""Messages between pioletd's processes: one JSON object each, decoded strictly into the fields of a dataclass.

Who sends may be a process that a user has taken over. So what comes is of exactly the declared types, or it is a
WireError: no field too many or too few, no true for a 1, no number beyond 64 bits or that is none, no nesting that
Python's own parser gives up on. Known types: bool, int, float, str, X | None, list[X], tuple[X, ...],
tuple[X, Y], and dataclasses of these.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import types
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from piolet.errors import WireError

T = TypeVar("T")
_INT_MAX = 1 << 64


def encode(value: Any) -> bytes:
    """Return the message that is a dataclass."""
    return json.dumps(dataclasses.asdict(value)).encode()


def decode(kind: type[T], data: bytes | str) -> T:
    """Return the `kind` in a message; fields with a default may be left out. Raises WireError."""
    try:
        return build(kind, json.loads(data))
    except (ValueError, RecursionError) as error:
        raise WireError(f"a message is no JSON: {str(error)[:200]}") from None


def build(kind: type[T], value: object) -> T:
    """Return the `kind` of which `value` has the fields. Raises WireError."""
    result: T = _object(kind, value, kind.__name__)
    return result


@functools.cache
def _fields(kind: Any) -> tuple[dict[str, Any], frozenset[str]]:
    """Return the types of a dataclass's fields, and the names of those without a default."""
    hints = get_type_hints(kind)
    needed = {
        field.name
        for field in dataclasses.fields(kind)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}, frozenset(needed)


def _object(kind: Any, value: object, where: str) -> Any:
    if not isinstance(value, dict):
        raise _wrong(where, "an object", value)
    hints, needed = _fields(kind)
    if not needed <= value.keys() <= hints.keys():
        names = sorted(needed - value.keys()) or sorted(map(str, value.keys() - hints.keys()))
        raise WireError(f"a message is malformed: {where} lacks, or has besides: {', '.join(names)[:200]}")
    return kind(**{name: _value(hints[name], item, f"{where}.{name}") for name, item in value.items()})


def _value(kind: Any, value: object, where: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        (kind,) = (one for one in arguments if one is not type(None))
        return _value(kind, value, where)
    if origin in (list, tuple):
        return _items(origin, arguments, value, where)
    if dataclasses.is_dataclass(kind):
        return _object(kind, value, where)
    if type(value) is int and not -_INT_MAX < value < _INT_MAX:
        raise WireError(f"a message is malformed: {where} is a number beyond 64 bits")
    if kind is float and (type(value) is int or (type(value) is float and math.isfinite(value))):
        return float(value)
    if type(value) is not kind or kind is float:
        raise _wrong(where, kind.__name__, value)
    return value


def _items(origin: Any, arguments: tuple[Any, ...], value: object, where: str) -> Any:
    if not isinstance(value, list):
        raise _wrong(where, "an array", value)
    if origin is tuple and arguments[-1] is not Ellipsis:
        if len(value) != len(arguments):
            raise _wrong(where, f"an array of {len(arguments)}", value)
        return tuple(_value(kind, item, where) for kind, item in zip(arguments, value, strict=True))
    return origin(_value(arguments[0], item, where) for item in value)


def _wrong(where: str, wanted: str, value: object) -> WireError:
    return WireError(f"a message is malformed: {where} is not {wanted} but {type(value).__name__}")
