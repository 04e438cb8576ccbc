"""What can be asked of the data of steps. Users read their own, staff all.

To everybody else a step is not there: the answer is the same, whatever there is. Files are read piece by piece, each
in an answer that is signed for who asked.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from piolet.base import files
from piolet.base.errors import EventError, ObserveError
from piolet.central.answers import Answers, Asker
from piolet.central.latest import Latest
from piolet.central.store.database import StoreError
from piolet.observe import layout, packed
from piolet.observe.catalogue import OPEN, Catalogue, Row
from piolet.observe.reading import read_meta

_STEPS_MOST = 1000
PIECE = 4 << 20
NOW_MOST = 2048  # nodes, each of some 4 kB
_NAME = re.compile(r"([A-Za-z0-9_]{1,60})\.([a-z0-9+]{1,60})(?:-r(\d{1,9}))?")
_FILES = frozenset({layout.META_FILE, *(f"{table}{layout.SUFFIX}" for table in layout.TABLES)})
Parameters = Mapping[str, str]


def add(answers: Answers, root: Path, latest: Latest) -> None:
    """Let the service answer these questions."""
    steps = _Steps(root, latest)
    answers.ask |= {
        ("GET", "steps"): steps.steps, ("GET", "step"): steps.step, ("GET", "stepfile"): steps.file,
        ("GET", "stepnow"): steps.now,
    }  # fmt: skip


class _Steps:
    def __init__(self, root: Path, latest: Latest) -> None:
        self._root, self._latest = root, latest

    def _rows(self, asker: Asker, where: str, *values: object) -> list[Row]:
        """Return rows that whoever asks may see."""
        try:
            catalogue = Catalogue(self._root, reads=True)  # the thread that answers is any of some
            try:
                if asker.staff:
                    return catalogue.rows(where, *values)
                return catalogue.rows(f"uid = ? and {where}", asker.uid, *values)
            finally:
                catalogue.close()
        except ObserveError as error:
            raise StoreError(error.message, error.hint) from None

    def steps(self, asker: Asker, parameters: Parameters) -> dict[str, Any]:
        """Return steps, the newest first: of a `job`, since so many `seconds`, of a `uid`."""
        where, values = ["1"], list[object]()
        if "job" in parameters:
            where.append("job = ?")
            values.append(parameters["job"])
        if "uid" in parameters:
            where.append("uid = ?")
            values.append(_whole(parameters, "uid"))
        if "after" in parameters:
            where.append("last >= ?")
            values.append(_whole(parameters, "after"))
        found = self._rows(asker, " and ".join(where), *values)
        return {"steps": [_said(row) for row in found[:_STEPS_MOST]], "complete": len(found) <= _STEPS_MOST}

    def step(self, asker: Asker, parameters: Parameters) -> dict[str, Any]:
        """Return a step's files and their sizes."""
        row = self._row(asker, parameters)
        return {**_said(row), "files": self._files(row)}

    def now(self, asker: Asker, parameters: Parameters) -> dict[str, Any]:
        """Return what nodes told last of a `job`'s step: the one that is named, else the last that began."""
        where, values = ["job = ?", "state = ?"], [parameters.get("job", ""), OPEN]
        if "step" in parameters:
            where.append("step = ?")
            values.append(parameters["step"])
        rows = self._rows(asker, " and ".join(where), *values)
        told = [(row, self._latest.of((row.job, row.step, row.run, row.uid), NOW_MOST)) for row in rows]
        live = [(row, nodes) for row, nodes in told if any("age" in one for one in nodes.values())]
        if not live:
            return {"step": "", "nodes": {}, "complete": True}
        runs = [(row, nodes) for row, nodes in live if not all(one["ended"] for one in nodes.values())]
        row, nodes = max(runs or live, key=lambda one: (one[0].step.isdecimal(), one[0].step != "extern", one[0].start))
        known = self._devices(row) if any("devices" not in one for one in nodes.values()) else {}
        for name, one in nodes.items():
            if "devices" not in one and name in known:
                one["devices"] = known[name]
        return {"step": row.name, "nodes": nodes, "complete": len(nodes) < NOW_MOST}

    def _devices(self, row: Row) -> dict[str, Any]:
        """Return what the step's tables say of its nodes' GPUs, where there are any yet."""
        try:
            devices = read_meta(self._root / row.path).get("devices")
        except ObserveError:
            return {}
        return devices if isinstance(devices, dict) else {}

    def file(self, asker: Asker, parameters: Parameters) -> dict[str, Any]:
        """Return a piece of a file of a step: `name`, `file`, `offset`; with another `stamp` it is another file."""
        row = self._row(asker, parameters)
        name, offset = parameters.get("file", ""), _whole(parameters, "offset")
        if name not in _FILES:
            raise EventError(f"there is no file {name!r}")
        try:
            if row.packed:
                whole = packed.member(self._root / row.packed, f"{row.directory}/{name}")
                stamp, size, piece = row.packed, len(whole), whole[offset : offset + PIECE]
            else:
                stamp, size, piece = _piece(self._root / row.path / name, offset)
        except FileNotFoundError:
            raise EventError(f"there is no file {name!r}") from None
        except (OSError, ObserveError) as error:
            raise StoreError(f"{name} of {row.name} cannot be read: {getattr(error, 'strerror', error)}") from None
        return {"stamp": stamp, "size": size, "data": base64.b64encode(piece).decode()}

    def _row(self, asker: Asker, parameters: Parameters) -> Row:
        name = parameters.get("name", "")
        match = _NAME.fullmatch(name)
        if match is not None:
            job, step, run = match[1], match[2], int(match[3] or 0)
            found = self._rows(asker, "job = ? and step = ? and run = ?", job, step, run)
            if "id" in parameters:
                found = [row for row in found if row.id == _whole(parameters, "id")]
            if found:
                return found[0]
        raise EventError(f"there are no data of a step {name!r}", "piolet observe list names those that are yours")

    def _files(self, row: Row) -> dict[str, int]:
        if row.packed:
            found = packed.members(self._root / row.packed, row.directory)
        else:
            try:
                with os.scandir(self._root / row.path) as entries:
                    found = {entry.name: entry.stat().st_size for entry in entries}
            except OSError:
                found = {}
        return {name: size for name, size in sorted(found.items()) if name in _FILES}


def _piece(path: Path, offset: int) -> tuple[str, int, bytes]:
    """Return a file's stamp, its size, and a piece of it."""
    descriptor = files.open_regular(str(path))
    try:
        status = os.fstat(descriptor)
        return f"{status.st_ino}-{status.st_mtime_ns}", status.st_size, os.pread(descriptor, PIECE, offset)
    finally:
        os.close(descriptor)


def _said(row: Row) -> dict[str, Any]:
    return {
        "id": row.id, "name": row.name, "uid": row.uid, "state": row.state, "start": row.start, "last": row.last,
        "changed": row.changed, "size": row.size,
    }  # fmt: skip


def _whole(parameters: Parameters, name: str) -> int:
    try:
        number = int(parameters.get(name, "0"))
    except ValueError:
        number = -1
    if not 0 <= number < 2**53:
        raise EventError(f"{name} is no number")
    return number
