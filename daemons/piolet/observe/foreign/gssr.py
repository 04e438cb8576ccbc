"""What GSSR recorded, by the reader that `piolet score import` has: score/foreign.py."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from piolet.api import GPU_QUANTITIES
from piolet.base.errors import ObserveError, ScoreError
from piolet.observe.foreign.common import Asked, Remarks, Step, checked_times, columns_of, job_of, sound
from piolet.observe.layout import TABLES
from piolet.score import foreign

NAME, TEXT = "gssr", "GSSR's JSON, or its directories step_N with proc_M.csv"

_UNKNOWN = "unknown"


def is_one(path: Path) -> bool:
    """Return whether a directory or a file is of GSSR."""
    return bool(foreign.files_of(path))


def read(paths: Sequence[Path], asked: Asked) -> list[Step]:
    """Return the steps that GSSR recorded. Raises ObserveError: a file is damaged, or does not say what is needed."""
    try:
        found: dict[tuple[str, str], list[Path]] = {}
        for path in paths:
            for file in foreign.files_of(path):
                header = foreign.read(file, asked.model)[0].header
                found.setdefault((header["job"], header["step"]), []).append(file)
        wanted = {key: own for key, own in found.items() if key[0] in (_UNKNOWN, "", asked.job) or not asked.job}
        if not wanted:
            raise ObserveError(f"{paths[0]} has no job {asked.job}" if found else f"{paths[0]} holds no file of GSSR")
        return [_step(key, own, asked) for key, own in wanted.items()]
    except ScoreError as error:
        raise ObserveError(error.message, error.hint) from None


def _step(key: tuple[str, str], paths: list[Path], asked: Asked) -> Step:
    told = "" if key[0] == _UNKNOWN else key[0]
    number = key[1] if key[1].isascii() and key[1].isdecimal() and len(key[1]) < 11 else ""
    job, step = job_of(told, Asked(asked.job, asked.step or number), paths[0])
    remarks, parts, devices = Remarks(), [], {}  # type: ignore[var-annotated]
    label, command, periods, starts, ends, wanted = "", "", [], [], [], 1
    for path in paths:
        facts, chunk = foreign.read(path, asked.model)
        checked_times(chunk["end"], path, "seconds since 1970")
        node = asked.node or facts.header["node"]
        node = node if node not in devices else f"{node}-{len(devices)}"
        devices[node] = [{"uuid": one["uuid"], "name": one["name"]} for one in facts.devices]
        whole = (facts.start, facts.end)
        uuids = np.array([one["uuid"] for one in facts.devices])
        rows = {"time": chunk["end"], "span": chunk["span"], "gpu": chunk["device"].astype(np.uint16)}
        rows |= {"node": np.full(len(chunk["end"]), node), "uuid": uuids[chunk["device"]]}
        for quantity in (one.name for one in GPU_QUANTITIES):
            values = chunk[quantity].astype(np.float64)
            if not np.isnan(values).all():
                rows[quantity] = sound(values, quantity, f"{path}: {quantity}", remarks, whole, node)
        for quantity, reasons in facts.quality.get("blanks", {}).items():
            for reason, count in reasons.items():
                remarks.add(quantity, whole, reason, count, node)
        parts.append(rows)
        label, command = label or facts.header["label"], command or facts.header["command"]
        periods.append(facts.header["period"])
        starts.append(facts.start)
        ends.append(facts.end)
        wanted = max(wanted, int(facts.header["nodes"]))
    if wanted > len(paths):
        remarks.add("samples", (min(starts), max(ends)), f"{wanted - len(paths)} of {wanted} nodes have no file")
    meta = {
        "job": job, "step": step, "start": int(min(starts)), "end": int(max(ends)), "nodes": list(devices),
        "devices": devices, "interval": float(np.median(periods)),
        **{name: text for name, text in (("name", label), ("command", command)) if text},
    }  # fmt: skip
    columns = columns_of(parts, tuple(column.name for column in TABLES["gpu"]))
    return Step(meta, {"gpu": columns, "quality": remarks.table()})
