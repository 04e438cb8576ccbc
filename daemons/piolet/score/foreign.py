"""Reads what GSSR recorded, and makes data sets of it, one for each step.

Two formats: the JSON of GSSR 0.x (one file per process: "metadata", and "data" with a list of values per GPU and
metric), and the CSV of its later recorder (CLUSTER_JOB/step_N/proc_M.csv: one file per node, a row per second and GPU
with minimum, mean and maximum of each DCGM field; the mean is taken). What a file does not tell stays missing, and the
data set says so: GSSR records no engine activity, no GPU model, no node's name, and, of links, nothing above 2e9 bytes
per second, which its recorder writes as 0 (jpcoles-cscs/gssr, gssr-record.c, read in November 2026).
"""

from __future__ import annotations

import csv
import json
import math
import os
import re
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from piolet.api import GPU_QUANTITIES, HOST_QUANTITIES
from piolet.base import files
from piolet.base.errors import ScoreError
from piolet.samples import dataset
from piolet.samples.journals import NodeFacts

_MIB = 1048576.0
# DCGM's field (GSSR's CSV) and tag (its JSON), our name, and what turns the unit into ours.
_METRICS = (
    ("DCGM_FI_DEV_GPU_UTIL", "gpu_utilization", "utilisation", 0.01),
    ("DCGM_FI_DEV_FB_USED", "fb_used", "memory_used", _MIB),
    ("DCGM_FI_PROF_GR_ENGINE_ACTIVE", "gr_engine_active", "engine", 1),
    ("DCGM_FI_PROF_SM_ACTIVE", "sm_active", "sm", 1),
    ("DCGM_FI_PROF_SM_OCCUPANCY", "sm_occupancy", "occupancy", 1),
    ("DCGM_FI_PROF_PIPE_TENSOR_ACTIVE", "tensor_active", "tensor", 1),
    ("DCGM_FI_PROF_PIPE_FP64_ACTIVE", "fp64_active", "fp64", 1),
    ("DCGM_FI_PROF_PIPE_FP32_ACTIVE", "fp32_active", "fp32", 1),
    ("DCGM_FI_PROF_PIPE_FP16_ACTIVE", "fp16_active", "fp16", 1),
    ("DCGM_FI_PROF_DRAM_ACTIVE", "dram_active", "dram", 1),
    ("DCGM_FI_PROF_PCIE_TX_BYTES", "pcie_tx_bytes", "pcie_tx", 1),
    ("DCGM_FI_PROF_PCIE_RX_BYTES", "pcie_rx_bytes", "pcie_rx", 1),
    ("DCGM_FI_PROF_NVLINK_TX_BYTES", "nvlink_tx_bytes", "nvlink_tx", 1),
    ("DCGM_FI_PROF_NVLINK_RX_BYTES", "nvlink_rx_bytes", "nvlink_rx", 1),
    ("DCGM_FI_PROF_C2C_TX_ALL_BYTES", "c2c_tx_all_bytes", "c2c_tx", 1),
    ("DCGM_FI_PROF_C2C_RX_ALL_BYTES", "c2c_rx_all_bytes", "c2c_rx", 1),
    ("DCGM_FI_DEV_POWER_USAGE", "power_usage", "power", 1),
)
_ENERGY = "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION_avg"  # of the row's second, in mJ
_LINKS = frozenset(name for _, _, name, _ in _METRICS if name.partition("_")[2] in ("tx", "rx"))
_ZEROED = "GSSR records what is above 2e9 B/s as 0"
_UNRECORDED = "GSSR did not record it"
_BLANK = 2.0**47
_FILE_MAX = 512 << 20
_PROC = re.compile(r"proc_(\d+)\.csv$")
_TEXTS = re.compile(r'"([\w-]+)"\s*:\s*"([^"\n]*)"')

_BROKEN = (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError)
_LATEST = 4102444800  # 2100

Chunk = dict[str, Any]
Blanks = dict[str, dict[str, int]]


def convert(source: Path, directory: Path, model: str = "") -> list[Path]:
    """Make data sets of GSSR's files below (or at) `source`, and return them.

    That of the only step is `directory`; of several steps each is a directory in it, called JOB.STEP.
    Raises ScoreError: nothing of GSSR is there, a file is damaged, or a directory cannot be written.
    """
    found = files_of(source)
    if not found:
        raise ScoreError(f"{source} holds no file of GSSR", "expected *.json, or step_*/proc_*.csv")
    steps: dict[str, list[tuple[NodeFacts, Path]]] = {}
    for path in found:
        facts, _ = read(path, model)
        steps.setdefault(f"{facts.header['job']}.{facts.header['step']}", []).append((facts, path))
    made = []
    for step, parts in steps.items():
        target = directory if len(steps) == 1 else directory / re.sub(r"[^\w.-]", "_", step)
        try:
            target.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ScoreError(f"cannot make the directory {target}: {error.strerror}") from None
        wanted = max(facts.header["nodes"] for facts, _ in parts)
        for number, (_, path) in enumerate(parts):
            _write(target, *read(path, model), wanted, number if len(parts) > 1 else None)
        made.append(target)
    return made


def files_of(source: Path) -> list[Path]:
    """Return the files below (or at) `source` that have the names of GSSR's."""
    return [source] if source.is_file() else sorted([*source.rglob("*.json"), *source.rglob("proc_*.csv")])


def read(path: Path, model: str) -> tuple[NodeFacts, Chunk]:
    """Return what a file of GSSR says of a node, and its samples. Raises ScoreError: it is damaged, or too large.

    model    of the GPUs, which GSSR does not record
    """
    try:
        with open(files.open_regular(str(path)), "rb") as file:
            if os.fstat(file.fileno()).st_size > _FILE_MAX:
                raise ScoreError(f"{path} is larger than the {_FILE_MAX >> 20} MiB that are read")
    except files.NotRegularError:
        raise ScoreError(f"{path} is no regular file") from None
    except OSError as error:
        raise ScoreError(f"cannot read {path}: {error.strerror}") from None
    return (_json if path.suffix == ".json" else _csv)(path, model)


def _write(directory: Path, facts: NodeFacts, chunk: Chunk, wanted: int, number: int | None) -> None:
    # Several processes of a host become several files; nodes of a data set have names of their own.
    facts.header |= {"nodes": wanted}
    facts.header["node"] += "" if number is None else f"-{number}"
    target = directory / f"{facts.header['node']}{dataset.PARQUET}"
    dataset.write(target.with_name(target.stem + dataset.HOST_PARQUET), facts, iter(()), host=True)
    dataset.write(target, facts, iter((chunk,)))


def _facts(job: str, step: str, node: str, gpus: list[str], chunk: Chunk, blanks: Blanks, **more: Any) -> Any:
    name = more["model"] or "unknown GPU"
    header = {
        "version": 1,
        "job": job,
        "step": step,
        "node": re.sub(r"[^\w.-]", "_", node)[:64],
        "uid": -1,
        "label": more["label"],
        "command": more["command"],
        "nodes": more.get("nodes", 0),
        "period": more["period"],
        "start": 0,
        "origin": 0,
        "gpu_columns": [q.name for q in GPU_QUANTITIES],
        "host_columns": [q.name for q in HOST_QUANTITIES],
        "devices": [{"uuid": f"GSSR-{g}", "name": name, "memory": 0, "power_limit": 0.0, "mig": False} for g in gpus],
        "collectors": [{"name": "gssr", "source": str(more["source"]), "simulated": "", "period": more["period"]}],
        "not_used": {},
        "simulated": "",
    }
    rows = len(chunk["end"])
    for quantity in ("engine", *sorted(_LINKS)):
        if np.isnan(chunk[quantity]).all() and quantity not in blanks:
            blanks[quantity] = {_UNRECORDED: rows}
    return NodeFacts(header, {"blanks": blanks}, [], more["start"], more["end"], True)


def _empty(size: int) -> Chunk:
    return {quantity.name: np.full(size, np.nan) for quantity in GPU_QUANTITIES}


def _why(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, KeyError):
        return f"there is no {error.args[0]!r}"
    if isinstance(error, OSError):
        return str(error.strerror)
    if isinstance(error, ValueError):
        return str(error)
    return "its parts are not what they should be"


def _json(path: Path, model: str) -> tuple[NodeFacts, Chunk]:
    try:
        content = json.loads(path.read_text("utf-8"))
        about, data = content["metadata"], content["data"]
        period = float(about["sampling_time"]) / 1000
        if not 0 < period < 3600:
            raise ValueError("a senseless sampling time")
        if not 0 <= float(about["start_time"]) < _LATEST:
            raise ValueError("start_time is no time in seconds since 1970")
        start = round(float(about["start_time"]) * 1e9)
        gpus = sorted(data, key=int)
        parts = [_json_gpu(data[gpu], index, period, start) for index, gpu in enumerate(gpus)]
        if not parts:
            raise ValueError("no GPU")
        chunk = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        if not len(chunk["end"]):
            raise ValueError("it has no samples")
        end = int(chunk["end"].max())
    except _BROKEN as error:
        raise ScoreError(f"{path} is not JSON of GSSR: {_why(error)}") from None
    job, step, node = (_one(about.get(key)) or "unknown" for key in ("job_id", "step_id", "hostname"))
    more = {"label": _one(about.get("label")), "command": _one(about.get("cmd")), "period": period, "model": model}
    return _facts(
        job, step, node, gpus, chunk, {}, start=start, end=end, source=f"GSSR's JSON {path.name}", **more
    ), chunk


def _json_gpu(metrics: dict[str, list[float]], index: int, period: float, start: int) -> Chunk:
    size = min(len(values) for values in metrics.values())
    chunk = _empty(size)
    for _, tag, name, factor in _METRICS:
        if tag in metrics:
            chunk[name] = _clean(np.array(metrics[tag][:size], float)) * factor
    end = start + ((np.arange(size) + 1) * period * 1e9).astype(np.int64)
    return chunk | {"device": np.full(size, index), "span": np.full(size, period), "end": end}


def _csv(path: Path, model: str) -> tuple[NodeFacts, Chunk]:
    about = _meta(path.parent)
    blanks: Blanks = {}
    try:
        with open(path, newline="", encoding="utf-8") as file:
            text = file.read()
        rows = list(csv.DictReader(text.splitlines()))
        # A recorder that was killed leaves a part of a row.
        if rows and (not text.endswith("\n") or None in rows[-1].values()):
            rows.pop()
        if any(None in row or None in row.values() for row in rows):
            raise ValueError("a row has not as many columns as the first line")
        gpus = sorted({row["gpuId"] for row in rows}, key=int)
        chunk = _csv_chunk(rows, {gpu: index for index, gpu in enumerate(gpus)}, blanks, _began(about))
    except (*_BROKEN, csv.Error) as error:
        raise ScoreError(f"{path} is not CSV of GSSR: {_why(error)}") from None
    if not rows:
        raise ScoreError(f"{path} holds no samples")
    found = _PROC.search(path.name)
    ends = chunk["end"] - np.round(chunk["span"] * 1e9).astype(np.int64)
    more = {
        "label": about.get("jobname", ""),
        "command": " ".join(filter(None, (about.get("executable"), about.get("arguments")))).strip(),
        "nodes": int(nodes) if (nodes := about.get("step_nnodes", "")).isdecimal() else 0,
        "period": 1.0,
        "model": model,
        "start": int(ends.min()),
        "end": int(chunk["end"].max()),
        "source": f"GSSR's CSV {path.name}",
    }
    node, step = f"proc{found.group(1) if found else '0'}", path.parent.name.removeprefix("step_")
    return _facts(about.get("jobid") or "unknown", step, node, gpus, chunk, blanks, **more), chunk


def _csv_chunk(rows: list[dict[str, str]], places: dict[str, int], blanks: Blanks, began: float) -> Chunk:
    """Return the rows as samples. A row's time is the end of what it is the mean of, in seconds since `began`."""
    chunk = _empty(len(rows))
    columns: Callable[[str], Any] = lambda name: _clean(np.array([_number(row[name]) for row in rows]))  # noqa: E731
    known = rows[0] if rows else {}
    for field, _, name, factor in _METRICS:
        if f"{field}_avg" in known:
            values = columns(f"{field}_avg")
            if name in _LINKS:
                # The mean is at most the maximum: where that was written, the mean was not cut off.
                zeroed = (values == 0) & ((columns(f"{field}_max") == 0) if f"{field}_max" in known else True)
                values[zeroed] = np.nan
                if zeroed.any():
                    blanks[name] = {_ZEROED: int(zeroed.sum())}
            chunk[name] = values * factor
    chunk["device"] = np.array([places[row["gpuId"]] for row in rows])
    times = np.array([float(row["timestamp"]) for row in rows])
    if not ((times >= 0) & (times < _LATEST)).all():
        raise ValueError("a timestamp is no time in seconds")
    chunk["end"] = np.round((times + began) * 1e9).astype(np.int64)
    chunk["span"] = np.ones(len(rows))
    for index in places.values():
        mine = np.flatnonzero(chunk["device"] == index)
        steps = np.diff(times[mine])
        if (late := np.flatnonzero(steps <= 0)).size:
            raise ValueError(f"the rows of a GPU are twice or out of order at timestamp {times[mine][late[0] + 1]:g}")
        chunk["span"][mine[1:]] = steps
        if _ENERGY in known:
            chunk["energy"][mine] = np.cumsum(np.nan_to_num(columns(_ENERGY)[mine])) / 1000
    return chunk


def _began(about: dict[str, str]) -> float:
    """Return when the recorder began, in seconds since 1970; 0: it does not say."""
    try:
        return datetime.strptime(about.get("date", ""), "%Y-%m-%dT%H:%M:%S%z").timestamp()
    except ValueError:
        return 0.0


def _meta(directory: Path) -> dict[str, str]:
    """Return what GSSR says of a step, which it writes without escaping what stands in a text."""
    for path in sorted(directory.glob("proc_*.meta.txt")):
        try:
            text = path.read_bytes()[: 1 << 20].decode("utf-8", "replace")
            content = json.loads(text)
        except OSError:
            continue
        except ValueError:
            return {key: value for key, value in _TEXTS.findall(text) if key != "arguments"}
        if isinstance(content, dict):
            return {str(key): _one(value) for key, value in content.items()}
    return {}


def _one(value: Any) -> str:
    """Return a value as text; of a list of one, which earlier files have, that one."""
    if isinstance(value, list):
        value = value[0] if value else None
    return "" if value is None else str(value)


def _number(text: str) -> float:
    return float(text) if text else math.nan


def _clean(values: Any) -> Any:
    """Return values with DCGM's blanks as NaN."""
    return np.where(values >= _BLANK, np.nan, values)
