"""What an application says of itself: marks (loss, step, tokens per second), kept among the user's results.

    DIRECTORY/CLUSTER/marks/112/NODE.jsonl        what `piolet mark` said on a node, a line each, appended
    DIRECTORY/CLUSTER/marks/112/from-output.jsonl what was found in files: written whole, anew each time

A line is {"name", "value", "time" (seconds since 1970, null: not known), "step", "node", "task", "origin"}; a value
that is no number is "nan", "inf" or "-inf". It is the application's own word in every case. Runs as the user, who may
write there what they like: a line that is none is passed over, and no more than MOST are read.
"""

from __future__ import annotations

import gzip
import itertools
import json
import math
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]

from piolet.base import files
from piolet.base.errors import ObserveError, UsageError
from piolet.observe import layout, results
from piolet.observe.job import Mark

MOST = 200_000
SENT_MOST, SENT_BYTES = 50_000, 16 << 20
"""Of a job, to the central service."""
ORIGINS = COMMAND, OUTPUT, TENSORBOARD, WANDB = ("command", "output", "tensorboard", "wandb")
_LINE_MOST = 1024
_FILE_MOST = 64 << 20
_FILES_MOST = 4096
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]{0,63}")
_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d{1,3})?|[+-]?(?:nan|inf(?:inity)?)", re.IGNORECASE)


@dataclass(frozen=True)
class Said:
    """One mark. `time` in seconds since 1970, None: not known; node, step and task '' where they are not known."""

    name: str
    value: float
    time: float | None
    origin: str
    node: str = ""
    step: str = ""
    task: str = ""


def parse(word: str) -> tuple[str, float]:
    """Return name and value of NAME=VALUE. Raises UsageError."""
    name, equals, text = word.partition("=")
    if not equals or NAME.fullmatch(name) is None:
        raise UsageError(f"'{word[:60]}' is no mark", "write NAME=VALUE, for example loss=0.31; a name has no blanks")
    value = number(text)
    if value is None:
        raise UsageError(f"'{text[:60]}' of {name} is no number", "write for example loss=0.31, or loss=nan")
    return name, value


def number(text: str) -> float | None:
    """Return the number in a text, which may be nan or inf; None: it is none."""
    return float(text) if len(text) <= 64 and _NUMBER.fullmatch(text) else None


def add(directory: str, node: str, said: Iterable[Said]) -> None:
    """Append marks to those of a node. Raises ObserveError: they cannot be written."""
    data = b"".join(_line(one) for one in said)
    path = os.path.join(directory, f"{node.replace('/', '_') or 'unknown'}.jsonl")
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        descriptor = files.open_regular(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            if os.fstat(descriptor).st_size + len(data) > _FILE_MOST:
                raise ObserveError(f"{path} has all the marks that a job may have: {_FILE_MOST >> 20} MiB")
            os.write(descriptor, data)  # one call: tasks of a node write beside each other
        finally:
            os.close(descriptor)
    except (OSError, files.NotRegularError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no file"
        raise ObserveError(
            f"cannot write {path}: {why}", "print the line 'piolet-mark NAME=VALUE': it is found in the job's output"
        ) from None


def put(directory: str, origin: str, said: Iterable[Said]) -> None:
    """Put marks that were found in files in the place of those of before. Raises ObserveError."""
    path = os.path.join(directory, f"from-{origin}.jsonl")
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        files.write_whole(path, b"".join(map(_line, said)), f"{path}.{os.getpid()}", mode=0o600)
    except OSError as error:
        raise ObserveError(f"cannot write {path}: {error.strerror}") from None


def read(directory: Path) -> Iterator[Said]:
    """Yield the marks in a directory, in the order of their files; MOST at most."""
    left = MOST
    try:
        names = sorted(entry.name for entry in os.scandir(directory) if entry.name.endswith(".jsonl"))[:_FILES_MOST]
    except OSError:
        return
    for name in names:
        try:
            data = files.read_small(str(directory / name), _FILE_MOST)[0]
        except (OSError, files.NotRegularError):
            continue
        for one in lines(data):
            if left == 0:
                return
            left -= 1
            yield one


def lines(data: bytes) -> Iterator[Said]:
    """Yield the marks in a text; lines that are none are passed over."""
    for line in data.splitlines():
        if len(line) <= _LINE_MOST and (one := _said(line)) is not None:
            yield one


def packed(said: Iterable[Said]) -> tuple[bytes, int]:
    """Return marks as they are sent, the last SENT_MOST of them, and how many are left out."""
    whole = list(said)
    return gzip.compress(text_of(whole[-SENT_MOST:]), compresslevel=6, mtime=0), max(0, len(whole) - SENT_MOST)


def unpacked(body: bytes) -> list[Said]:
    """Return marks that were sent. Raises ObserveError: it is no gzip, or there are too many of them, or bytes."""
    machine = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    try:
        text = machine.decompress(body, SENT_BYTES + 1)
    except zlib.error:
        raise ObserveError("what was sent is no gzip") from None
    found = list(itertools.islice(lines(text), SENT_MOST + 1)) if len(text) <= SENT_BYTES else []
    if not machine.eof or len(text) > SENT_BYTES or len(found) > SENT_MOST:
        raise ObserveError(f"a job has {SENT_MOST} marks at most, {SENT_BYTES >> 20} MiB together")
    return found


def text_of(said: Iterable[Said]) -> bytes:
    """Return marks as lines."""
    return b"".join(map(_line, said))


def of_job(place: str | None, number_of_job: int, step: str = "") -> list[Said]:
    """Return the marks of a job, or of one of its steps, in order of their times; those without one last."""
    found = [one for lies in results.of_job(place, results.MARKS, number_of_job) for one in read(lies)]
    chosen = [one for one in found if not step or not one.step or one.step == step]
    return sorted(chosen, key=lambda one: (one.time is None, one.time or 0.0))


def summed(said: Iterable[Said]) -> tuple[Mark, ...]:
    """Return for each name and origin how many values there are, and what they run between."""
    by_name: dict[tuple[str, str], list[float]] = {}
    for one in said:
        by_name.setdefault((one.name, one.origin), []).append(one.value)
    made = []
    for (name, origin), values in by_name.items():
        good = [value for value in values if math.isfinite(value)]
        odd = len(values) - len(good)
        first, last = (good[0], good[-1]) if good else (None, None)
        least, most = min(good, default=None), max(good, default=None)
        made.append(Mark(name, len(values), first, last, least, most, odd, origin))
    return tuple(made)


def table(said: Iterable[Said]) -> pa.Table:
    """Return marks as the layout's table `marks` has them."""
    rows = list(said)
    columns = {
        "time": [None if one.time is None else int(one.time * 1e6) for one in rows],
        "node": [one.node or None for one in rows],
        "subject": [f"task {one.task}" if one.task else None for one in rows],
        "name": [one.name for one in rows],
        "value": [one.value for one in rows],
        "origin": [one.origin for one in rows],
    }
    schema = layout.schema("marks")
    return pa.table([pa.array(columns[name], schema.field(name).type) for name in schema.names], schema=schema)


def at(said: Said, node: str, step: str, task: str) -> Said:
    """Return a mark with where it was said."""
    return replace(said, node=node, step=step, task=task)


def _line(one: Said) -> bytes:
    value: Any = one.value if math.isfinite(one.value) else str(one.value)
    said = {"name": one.name, "value": value, "time": one.time, "origin": one.origin}
    said |= {key: text for key, text in (("node", one.node), ("step", one.step), ("task", one.task)) if text}
    return json.dumps(said, separators=(",", ":")).encode("ascii") + b"\n"


def _said(line: bytes) -> Said | None:
    try:
        said = json.loads(line)
        value = said["value"]
        value = number(value) if isinstance(value, str) else value
        when = said.get("time")
        texts = [said.get(key, "") for key in ("node", "step", "task")]
        sound = (
            isinstance(said["name"], str) and NAME.fullmatch(said["name"]) and type(value) in (int, float)
            and (when is None or (type(when) in (int, float) and 0 <= when < 1e11)) and said["origin"] in ORIGINS
            and all(isinstance(text, str) and len(text) <= 255 for text in texts)
        )  # fmt: skip
        return Said(said["name"], float(value or 0.0), when, said["origin"], *texts) if sound else None
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError, OverflowError):
        return None
