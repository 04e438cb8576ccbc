"""Reads what GSSR recorded, and makes a data set of it.

Two formats: the JSON of GSSR 0.x (one file per process: "metadata", and "data" with a list of values per GPU and
metric), and the CSV of its later recorder (step_N/proc_M.csv: a row per second and GPU with minimum, mean and
maximum of each DCGM field; the mean is taken). What a file does not tell stays missing: GSSR has no engine activity
and no GPU model, so utilisation stands in for nothing, and links are judged only if the model is given.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from piolet.api import GPU_QUANTITIES, HOST_QUANTITIES
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
    ("DCGM_FI_DEV_POWER_USAGE", "power_usage", "power", 1),
)
_ENERGY = "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION_avg"  # of the row's second, in mJ
_BLANK = 2.0**47
_FILE_MAX = 2 << 30
_PROC = re.compile(r"proc_(\d+)\.csv$")

Chunk = dict[str, Any]


def convert(source: Path, directory: Path, model: str = "") -> int:
    """Make a data set in `directory` of GSSR's files below (or at) `source`; return how many files there were.

    Raises ScoreError: nothing of GSSR is there, a file is damaged, or the directory cannot be written.
    """
    files = [source] if source.is_file() else sorted([*source.rglob("*.json"), *source.rglob("proc_*.csv")])
    if not files:
        raise ScoreError(f"{source} holds no file of GSSR", "expected *.json, or step_*/proc_*.csv")
    for number, path in enumerate(files):
        if path.stat().st_size > _FILE_MAX:
            raise ScoreError(f"{path} is larger than GSSR's files can be")
        read = _json if path.suffix == ".json" else _csv
        facts, chunk = read(path, model)
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ScoreError(f"cannot make the directory {directory}: {error.strerror}") from None
        # Several processes of a host become several files; nodes of a data set have names of their own.
        facts.header["node"] = f"{facts.header['node']}-{number}" if len(files) > 1 else facts.header["node"]
        target = directory / f"{facts.header['node']}{dataset.PARQUET}"
        dataset.write(target.with_name(target.stem + dataset.HOST_PARQUET), facts, iter(()), host=True)
        dataset.write(target, facts, iter((chunk,)))
    return len(files)


def _facts(job: str, step: str, node: str, gpus: list[str], model: str, period: float, **more: Any) -> NodeFacts:
    name = model or "unknown GPU"
    header = {
        "version": 1,
        "job": job,
        "step": step,
        "node": re.sub(r"[^\w.-]", "_", node)[:64],
        "uid": -1,
        "label": more.get("label", ""),
        "command": more.get("command", ""),
        "period": period,
        "start": 0,
        "origin": 0,
        "gpu_columns": [q.name for q in GPU_QUANTITIES],
        "host_columns": [q.name for q in HOST_QUANTITIES],
        "devices": [{"uuid": f"GSSR-{g}", "name": name, "memory": 0, "power_limit": 0.0, "mig": False} for g in gpus],
        "collectors": [{"name": "gssr", "source": str(more["source"]), "simulated": "", "period": period}],
        "not_used": {},
        "simulated": "",
    }
    return NodeFacts(header, {}, [], more["start"], more["end"], True)


def _empty(size: int) -> Chunk:
    return {quantity.name: np.full(size, np.nan) for quantity in GPU_QUANTITIES}


def _why(error: Exception) -> str:
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
        start = round(float(about["start_time"]) * 1e9)
        gpus = sorted(data, key=int)
        parts = [_json_gpu(data[gpu], index, period, start) for index, gpu in enumerate(gpus)]
        if not parts or not 0 < period < 3600:
            raise ValueError("no GPU, or a senseless sampling time")
        end = max(int(part["end"][-1]) for part in parts)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ScoreError(f"{path} is not JSON of GSSR: {_why(error)}") from None
    job, step, node = (str(about.get(key, "0")) for key in ("job_id", "step_id", "hostname"))
    more = {"label": str(about.get("label") or ""), "command": str(about.get("cmd") or "")}
    facts = _facts(
        job, step, node, gpus, model, period, start=start, end=end, source=f"GSSR's JSON {path.name}", **more
    )
    return facts, {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _json_gpu(metrics: dict[str, list[float]], index: int, period: float, start: int) -> Chunk:
    size = min(len(values) for values in metrics.values())
    chunk = _empty(size)
    for _, tag, name, factor in _METRICS:
        if tag in metrics:
            chunk[name] = _clean(np.array(metrics[tag][:size], float)) * factor
    end = start + ((np.arange(size) + 1) * period * 1e9).astype(np.int64)
    return chunk | {"device": np.full(size, index), "span": np.full(size, period), "end": end}


def _csv(path: Path, model: str) -> tuple[NodeFacts, Chunk]:
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        gpus = sorted({row["gpuId"] for row in rows}, key=int)
        chunk = _csv_chunk(rows, {gpu: index for index, gpu in enumerate(gpus)})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ScoreError(f"{path} is not CSV of GSSR: {_why(error)}") from None
    if not rows:
        raise ScoreError(f"{path} holds no samples")
    about = next(_meta(path.parent), {})
    job = str((about.get("jobid") or ["0"])[0])
    found, step = _PROC.search(path.name), path.parent.name.removeprefix("step_")
    more = {
        "start": int(chunk["end"].min()) - 10**9,
        "end": int(chunk["end"].max()),
        "source": f"GSSR's CSV {path.name}",
    }
    node = f"proc{found.group(1) if found else '0'}"
    return _facts(job, step, node, gpus, model, 1.0, **more), chunk


def _csv_chunk(rows: list[dict[str, str]], places: dict[str, int]) -> Chunk:
    chunk = _empty(len(rows))
    for field, _, name, factor in _METRICS:
        column = f"{field}_avg"
        if rows and column in rows[0]:
            chunk[name] = _clean(np.array([_number(row[column]) for row in rows])) * factor
    chunk["device"] = np.array([places[row["gpuId"]] for row in rows])
    chunk["span"] = np.ones(len(rows))
    chunk["end"] = np.array([round((float(row["timestamp"]) + 1) * 1e9) for row in rows], np.int64)
    if rows and _ENERGY in rows[0]:
        joules = np.nan_to_num(_clean(np.array([_number(row[_ENERGY]) for row in rows]))) / 1000
        for index in places.values():
            mine = chunk["device"] == index
            chunk["energy"][mine] = np.cumsum(joules[mine])
    return chunk


def _meta(directory: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(directory.glob("proc_*.meta.txt")):
        try:
            content = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(content, dict):
            yield content


def _number(text: str) -> float:
    return float(text) if text else math.nan


def _clean(values: Any) -> Any:
    """Return values with DCGM's blanks as NaN."""
    return np.where(values >= _BLANK, np.nan, values)
