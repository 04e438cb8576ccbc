"""Files as other monitors write them, with noise and phases, made by a seed; and what is read of them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
from piolet.observe import reading as layout_reading
from piolet.observe.foreign import reading
from piolet.observe.foreign.common import Asked

START = 1_795_000_000  # 2026-11-18


def load(seed: int, size: int, least: float, most: float) -> np.ndarray[Any, Any]:
    """Return values between two bounds: a training with phases, pauses and noise."""
    rng = np.random.default_rng(seed)
    phase = np.repeat(rng.random(size // 12 + 1), 12)[:size]
    phase[rng.random(size) < 0.05] = 0
    return least + (most - least) * np.clip(phase + rng.normal(0, 0.02, size), 0, 1)


def scrape(lines: Sequence[str], helps: Sequence[str] = ()) -> str:
    """Return a scrape's text."""
    return "".join(f"{line}\n" for line in (*helps, *lines))


def dcgm(directory: Path, nodes: int = 2, gpus: int = 4, scrapes: int = 120, period: int = 10) -> None:
    """Write what dcgm-exporter serves, a file for each scrape and node."""
    for node in range(nodes):
        values = {
            gpu: {
                "DCGM_FI_DEV_GPU_UTIL": np.round(load(10 * node + gpu, scrapes, 0, 100)),
                "DCGM_FI_PROF_SM_ACTIVE": np.round(load(50 + 10 * node + gpu, scrapes, 0, 1), 6),
                "DCGM_FI_DEV_POWER_USAGE": np.round(load(100 + 10 * node + gpu, scrapes, 90, 690), 3),
                "DCGM_FI_DEV_FB_USED": np.round(load(150 + 10 * node + gpu, scrapes, 500, 90_000)),
            }
            for gpu in range(gpus)
        }
        for tick in range(scrapes):
            lines = []
            for gpu, own in values.items():
                labels = f'gpu="{gpu}",UUID="GPU-{node}-{gpu}",device="nvidia{gpu}",modelName="NVIDIA GH200 120GB"'
                labels += f',Hostname="nid{node:06}",hpc_job="4711"'
                lines += [f"{name}{{{labels}}} {own[name][tick]:g}" for name in own]
            helps = ["# HELP DCGM_FI_DEV_GPU_UTIL GPU utilization (in %).", "# TYPE DCGM_FI_DEV_GPU_UTIL gauge"]
            (directory / f"nid{node:06}-{START + tick * period}.prom").write_text(scrape(lines, helps), "utf-8")


def omnistat(directory: Path, scrapes: int = 100, period: int = 10) -> None:
    """Write what Omnistat serves of pm_counters, a file for each scrape of one node."""
    power, cpu = np.round(load(1, scrapes, 600, 2800)), np.round(load(2, scrapes, 90, 280))
    accelerators = [np.round(load(3 + one, scrapes, 80, 700)) for one in range(4)]
    energy = np.cumsum(power) * period
    for tick in range(scrapes):
        lines = [
            'rmsjob_info{jobid="99",user="alice",partition="batch",nodes="1",jobstep="0",type="slurm"} 1.0',
            f'omnistat_vendor_power_watts{{vendor="cray"}} {power[tick]:.1f}',
            f'omnistat_vendor_cpu_power_watts{{vendor="cray"}} {cpu[tick]:.1f}',
            f'omnistat_vendor_energy_joules{{vendor="cray"}} {energy[tick]:.1f}',
        ]
        lines += [
            f'omnistat_vendor_accel_power_watts{{accel="{one}",vendor="cray"}} {values[tick]:.1f}'
            for one, values in enumerate(accelerators)
        ]
        (directory / f"{START + tick * period}.prom").write_text(scrape(lines), "utf-8")


def metric(unit: dict[str, str], series: list[dict[str, Any]], timestep: int = 60) -> dict[str, Any]:
    """Return a metric of ClusterCockpit."""
    for one in series:
        known = [value for value in one["data"] if value is not None]
        one["statistics"] = {"avg": float(np.mean(known)), "min": min(known), "max": max(known)}
    return {"unit": unit, "timestep": timestep, "series": series}


def clustercockpit(directory: Path, job: int = 398759, packed: bool = True) -> dict[str, Any]:
    """Write a job of two nodes with two GPUs each into an archive, and return the content of data.json."""
    hosts, size = ["a0121", "a0122"], 30
    meta = {
        "jobId": job, "user": "alice", "project": "proj", "cluster": "alex", "subCluster": "a40", "partition": "a40",
        "numNodes": 2, "numHwthreads": 32, "numAcc": 4, "shared": "none", "jobState": "completed", "startTime": START,
        "duration": size * 60, "metaData": {"jobName": "train"}, "statistics": {},
        "resources": [{"hostname": host, "accelerators": ["00000000:01:00.0", "00000000:41:00.0"]} for host in hosts],
    }  # fmt: skip

    def each(seed: int, least: float, most: float, ids: Sequence[str | None]) -> list[dict[str, Any]]:
        return [
            {"hostname": host, "data": np.round(load(seed + 7 * n, size, least, most), 2).tolist()}
            | ({"id": one} if one else {})
            for n, (host, one) in enumerate((host, one) for host in hosts for one in ids)
        ]

    gpus = ["00000000:01:00.0", "00000000:41:00.0"]
    data: dict[str, Any] = {
        "acc_utilization": {"accelerator": metric({"base": ""}, each(1, 0, 100, gpus))},
        "acc_mem_used": {"accelerator": metric({"base": "B", "prefix": "G"}, each(2, 1, 40, gpus))},
        "acc_power": {"accelerator": metric({"base": "W"}, each(3, 40, 300, gpus))},
        "mem_used": {"node": metric({"base": "B", "prefix": "G"}, each(4, 10, 200, [None]))},
        "cpu_power": {"socket": metric({"base": "W"}, each(5, 50, 250, ["0", "1"]))},
        "ib_recv": {"node": metric({"base": "B/s", "prefix": "M"}, each(6, 0, 5000, [None]))},
        "flops_any": {"node": metric({"base": "F/s", "prefix": "G"}, each(7, 0, 100, [None]))},
    }
    fast = {"base": "B/s", "prefix": "M"}
    ways = {
        f"{way}_bw": {"node": metric(fast, each(seed, 0, 900, [None]))} for way, seed in (("read", 8), ("write", 9))
    }
    data["filesystems"] = [{"name": "/scratch", "type": "lustre", **ways}]
    data["acc_utilization"]["accelerator"]["series"][0]["data"][3:6] = [None, None, None]
    place = directory / "alex" / str(job // 1000) / f"{job % 1000:03}" / str(START)
    write_job(place, meta, data, packed)
    return data


def write_job(place: Path, meta: Any, data: Any, packed: bool = False) -> None:
    """Write a job's two files."""
    place.mkdir(parents=True, exist_ok=True)
    (place / "meta.json").write_text(json.dumps(meta), "utf-8")
    text = json.dumps(data).encode()
    (place / ("data.json.gz" if packed else "data.json")).write_bytes(gzip.compress(text) if packed else text)


def stepped(paths: Sequence[Path], out: Path, kind: str = "", **asked: str) -> layout_reading.StepData:
    """Return the only step of files, read, written and opened again."""
    (made,) = (reading.write(step, out) for step in reading.read(paths, kind, Asked(**asked)))
    return layout_reading.open_step(made)


def mean(table: pa.Table, quantity: str, **where: Any) -> float:
    """Return the mean over what samples cover."""
    rows = [row for row in table.to_pylist() if all(row[name] == value for name, value in where.items())]
    pairs = [(row[quantity], row["span"]) for row in rows if row[quantity] is not None]
    return float(np.average([value for value, _ in pairs], weights=[span for _, span in pairs]))


def reasons(step: layout_reading.StepData) -> dict[str, str]:
    """Return what quality says, by source."""
    return {str(row["source"]): str(row["reason"]) for row in step.quality.to_pylist()}
