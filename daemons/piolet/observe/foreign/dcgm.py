"""What dcgm-exporter served at /metrics: Prometheus text, a file for each scrape.

Names and units are those of DCGM's fields, docs.nvidia.com/datacenter/dcgm/latest/reference/field-identifiers.html;
those of dcgm-exporter 4.9 are in base units and have names of their own (its release notes, read in November 2026).
PROF_*_BYTES are rates whatever TYPE says. Labels: gpu, UUID, modelName, Hostname or (since 4.8.3) hostname, GPU_I_ID of
a MIG instance, hpc_job where a mapping of jobs is set up.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from piolet.base.errors import ObserveError
from piolet.observe.foreign import exposition
from piolet.observe.foreign.common import Array, Asked, Remarks, Step, columns_of, job_of
from piolet.observe.foreign.exposition import Scrapes, Series
from piolet.observe.foreign.scrapes import Key, Metric, check_units, lasted, samples
from piolet.observe.layout import TABLES

NAME, TEXT = "dcgm", "scrapes of dcgm-exporter: Prometheus text, a file for each"

_MIB = 1048576.0
METRICS = {
    f"DCGM_FI_{name}": Metric(quantity, factor, units)
    for name, quantity, factor, units in (
        ("DEV_GPU_UTIL", "utilisation", 0.01, ("%",)),
        ("DEV_FB_USED", "memory_used", _MIB, ("MiB",)),
        ("DEV_POWER_USAGE", "power", 1, ("W",)),
        ("DEV_TOTAL_ENERGY_CONSUMPTION", "energy", 0.001, ("mJ",)),
        ("DEV_GPU_TEMP", "temperature", 1, ("C", "°C")),
        ("DEV_MEMORY_TEMP", "memory_temperature", 1, ("C", "°C")),
        ("DEV_SM_CLOCK", "clock_sm", 1, ("MHz",)),
        ("DEV_MEM_CLOCK", "clock_memory", 1, ("MHz",)),
        ("DEV_CLOCK_THROTTLE_REASONS", "clock_events", 1, ()),
        ("DEV_XID_ERRORS", "xid", 1, ()),
        ("PROF_GR_ENGINE_ACTIVE", "engine", 1, ()),
        ("PROF_SM_ACTIVE", "sm", 1, ()),
        ("PROF_SM_OCCUPANCY", "occupancy", 1, ()),
        ("PROF_PIPE_TENSOR_ACTIVE", "tensor", 1, ()),
        ("PROF_PIPE_TENSOR_IMMA_ACTIVE", "tensor_int", 1, ()),
        ("PROF_PIPE_TENSOR_HMMA_ACTIVE", "tensor_half", 1, ()),
        ("PROF_PIPE_TENSOR_DFMA_ACTIVE", "tensor_double", 1, ()),
        ("PROF_PIPE_FP64_ACTIVE", "fp64", 1, ()),
        ("PROF_PIPE_FP32_ACTIVE", "fp32", 1, ()),
        ("PROF_PIPE_FP16_ACTIVE", "fp16", 1, ()),
        ("PROF_PIPE_INT_ACTIVE", "integer", 1, ()),
        ("PROF_DRAM_ACTIVE", "dram", 1, ()),
        ("PROF_PCIE_TX_BYTES", "pcie_tx", 1, ()),
        ("PROF_PCIE_RX_BYTES", "pcie_rx", 1, ()),
        ("PROF_NVLINK_TX_BYTES", "nvlink_tx", 1, ()),
        ("PROF_NVLINK_RX_BYTES", "nvlink_rx", 1, ()),
        ("PROF_C2C_TX_ALL_BYTES", "c2c_tx", 1, ()),
        ("PROF_C2C_RX_ALL_BYTES", "c2c_rx", 1, ()),
        # dcgm-exporter 4.9 and later
        ("DEV_GPU_UTIL_RATIO", "utilisation", 1, ()),
        ("DEV_FB_USED_BYTES", "memory_used", 1, ("bytes",)),
        ("DEV_BOARD_POWER_WATTS", "power", 1, ("W", "watts")),
        ("DEV_GPU_ENERGY_JOULES_TOTAL", "energy", 1, ("J", "joules")),
        ("DEV_GPU_TEMP_CELSIUS", "temperature", 1, ("C", "°C")),
        ("DEV_MEMORY_TEMP_CELSIUS", "memory_temperature", 1, ("C", "°C")),
        ("DEV_SM_CLOCK_HERTZ", "clock_sm", 1e-6, ("Hz", "hertz")),
        ("DEV_MEMORY_CLOCK_HERTZ", "clock_memory", 1e-6, ("Hz", "hertz")),
        ("DEV_CLOCKS_EVENT_REASONS", "clock_events", 1, ()),
        ("DEV_XID_ERROR", "xid", 1, ()),
        ("PROF_GR_ENGINE_UTIL_RATIO", "engine", 1, ()),
        ("PROF_SM_UTIL_RATIO", "sm", 1, ()),
        ("PROF_SM_OCCUPANCY_RATIO", "occupancy", 1, ()),
        ("PROF_TENSOR_UTIL_RATIO", "tensor", 1, ()),
        ("PROF_FP64_UTIL_RATIO", "fp64", 1, ()),
        ("PROF_FP32_UTIL_RATIO", "fp32", 1, ()),
        ("PROF_FP16_UTIL_RATIO", "fp16", 1, ()),
        ("PROF_DRAM_UTIL_RATIO", "dram", 1, ()),
    )
}
# DCGM's words for no value, of 32 bits, 64 bits and a double: dcgm_fields.h, DCGM_INT32_BLANK and those beside it.
_INT32_BLANK, _BLANK = 0x7FFFFFF0, 2.0**47


def is_one(head: str) -> bool:
    """Return whether a file that begins so is of dcgm-exporter."""
    return "DCGM_FI_" in head


def read(paths: Sequence[Path], asked: Asked) -> list[Step]:
    """Return the step whose GPUs were scraped. Raises ObserveError: files are damaged, or do not say what is needed."""
    scrapes = exposition.read(paths, METRICS)
    if not scrapes.series:
        raise ObserveError(f"{paths[0]} has no metric of a GPU that is known", "is it of dcgm-exporter?")
    check_units(scrapes, METRICS)
    job = _job(scrapes, asked, paths[0])
    devices: dict[Key, dict[str, tuple[str, Series]]] = {}
    facts: dict[Key, dict[str, str]] = {}
    for (name, labels), series in scrapes.series.items():
        about = dict(labels)
        if job and about.get("hpc_job", job) != job:
            continue
        key = (_node(about, asked, paths[0]), _device(about, paths[0]))
        facts.setdefault(key, about)
        _put(devices.setdefault(key, {}), name, series)
    remarks = Remarks()
    made = samples(devices, METRICS, remarks, _is_blank)
    return [_step(made, facts, scrapes, remarks, asked, job_of(job, asked, paths[0]))]


def _put(own: dict[str, tuple[str, Series]], name: str, series: Series) -> None:
    """Keep a series of a device; of one that is there under other labels too (of a pod, say) the samples of both."""
    quantity = METRICS[name].quantity
    known = own.get(quantity)
    if known is None:
        own[quantity] = (name, series)
    elif known[0] == name:
        known[1].times.extend(series.times)
        known[1].values.extend(series.values)


def _is_blank(values: Array) -> Array:
    small = (values >= _INT32_BLANK) & (values <= 0x7FFFFFFF) & (values == np.floor(values))
    blank: Array = (values >= _BLANK) | small
    return blank


def _job(scrapes: Scrapes, asked: Asked, path: Path) -> str:
    """Return the job of the labels that is asked for, or the only one; '' where they tell none."""
    found = sorted({value for _, labels in scrapes.series for name, value in labels if name == "hpc_job" and value})
    if asked.job:
        if found and asked.job not in found:
            raise ObserveError(f"{path} is of the jobs {', '.join(found[:5])}, and not of {asked.job}")
        return asked.job if found else ""
    if len(found) > 1:
        raise ObserveError(f"{path} has GPUs of the jobs {', '.join(found[:5])}", "choose one with --job JOB[.STEP]")
    return found[0] if found else ""


def _node(about: dict[str, str], asked: Asked, path: Path) -> str:
    node = asked.node or about.get("Hostname") or about.get("hostname") or about.get("instance", "").rpartition(":")[0]
    if not node or len(node) > 255 or not node.isprintable():
        raise ObserveError(f"{path} does not say of which node it is", "name it with --node NAME")
    return node


def _device(about: dict[str, str], path: Path) -> str:
    """Return what tells a GPU, or an instance of MIG, from others on its node."""
    uuid = about.get("UUID") or about.get("uuid") or (f"gpu{about['gpu']}" if about.get("gpu") else "")
    if not uuid or len(uuid) > 128 or not uuid.isprintable():
        raise ObserveError(f"{path} has a metric without a label that says of which GPU it is")
    return f"{uuid}/{about['GPU_I_ID']}" if about.get("GPU_I_ID") else uuid


def _order(key: Key, facts: dict[Key, dict[str, str]]) -> tuple[str, int, str]:
    number = facts[key].get("gpu", "")
    return key[0], int(number) if number.isascii() and number.isdecimal() and len(number) < 6 else 0, key[1]


def _step(
    made: dict[Key, dict[str, Any]], facts: dict[Key, dict[str, str]], scrapes: Scrapes, remarks: Remarks,
    asked: Asked, job: tuple[str, str],
) -> Step:  # fmt: skip
    parts, devices = [], {}  # type: ignore[var-annotated]
    for key in sorted(made, key=lambda one: _order(one, facts)):
        node, uuid = key
        own = devices.setdefault(node, [])
        rows, size = made[key], len(made[key]["time"])
        parts.append(rows | {
            "node": np.full(size, node), "uuid": np.full(size, uuid), "gpu": np.full(size, len(own), np.uint16),
        })  # fmt: skip
        own.append({"uuid": uuid, "name": asked.model or facts[key].get("modelName", "")})
    start, end = lasted(parts, scrapes, remarks)
    for name in sorted(scrapes.others):
        if name.startswith("DCGM_"):
            remarks.add(name, (start, end), "the layout has no column for it", scrapes.others[name])
    meta = {
        "job": job[0], "step": job[1], "start": start, "end": end, "nodes": list(devices), "devices": devices,
        "interval": float(np.median(np.concatenate([part["span"] for part in parts]))),
    }  # fmt: skip
    columns = columns_of(parts, tuple(column.name for column in TABLES["gpu"]))
    return Step(meta, {"gpu": columns, "quality": remarks.table()})
