"""What Omnistat served of Cray's pm_counters: Prometheus text, a file for each scrape.

Metrics: omnistat_vendor_power_watts, _cpu_power_watts and _memory_power_watts and energies in joules, of the node;
omnistat_vendor_accel_power_watts and _accel_energy_joules with the label accel (Omnistat's docs/metrics.md, "Vendor
counters", read in November 2026). Power is that of the moment; the energy counters say what it was on average, and
where the two differ by more than 5 % `quality` says so. rmsjob_info has the job.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from piolet.base.errors import ObserveError
from piolet.observe.foreign import exposition
from piolet.observe.foreign.common import NS, Array, Asked, Remarks, Step, columns_of, job_of
from piolet.observe.foreign.exposition import Scrapes, Series
from piolet.observe.foreign.scrapes import Key, Metric, check_units, lasted, samples
from piolet.observe.layout import TABLES

NAME, TEXT = "omnistat", "scrapes of Omnistat with Cray's pm_counters: Prometheus text, a file for each"

_PREFIX = "omnistat_vendor_"
_OF_NODE = {
    f"{_PREFIX}power_watts": Metric("node_power", 1, ("W",)),
    f"{_PREFIX}cpu_power_watts": Metric("cpu_power", 1, ("W",)),
}
_OF_ACCELERATOR = {
    f"{_PREFIX}accel_power_watts": Metric("power", 1, ("W",)),
    f"{_PREFIX}accel_energy_joules": Metric("energy", 1, ("J",)),
}
# Counters that say what a power was on average; only their growth is used.
_ENERGIES = {
    f"{_PREFIX}energy_joules": Metric("node_power", 1, ("J",)),
    f"{_PREFIX}cpu_energy_joules": Metric("cpu_power", 1, ("J",)),
}
METRICS = _OF_NODE | _OF_ACCELERATOR
_JOB = "rmsjob_info"
_DIFFER = 0.05


def is_one(head: str) -> bool:
    """Return whether a file that begins so is of Omnistat."""
    return _PREFIX in head or "rmsjob_info" in head


def read(paths: Sequence[Path], asked: Asked) -> list[Step]:
    """Return the step whose nodes were scraped. Raises ObserveError: files are damaged, or lack what is needed."""
    scrapes = exposition.read(paths, {*METRICS, *_ENERGIES, _JOB})
    check_units(scrapes, METRICS | _ENERGIES | {_JOB: Metric("")})
    found: dict[Key, dict[str, tuple[str, Series]]] = {}
    energies: dict[tuple[str, str], Series] = {}
    jobs: dict[str, dict[str, str]] = {}
    for (name, labels), series in scrapes.series.items():
        about = dict(labels)
        if name == _JOB:
            if about.get("jobid"):
                jobs[about["jobid"]] = about
            continue
        node = _node(about, asked, paths[0])
        if name in _ENERGIES:
            energies[node, _ENERGIES[name].quantity] = series
            continue
        accelerator = about.get("accel", "")
        if (name in _OF_ACCELERATOR) != (accelerator.isascii() and accelerator.isdecimal() and len(accelerator) < 4):
            raise ObserveError(f"{paths[0]}: {name} has the label accel={accelerator!r}")
        own = found.setdefault((node, accelerator), {})
        if METRICS[name].quantity in own:
            raise ObserveError(f"{paths[0]}: {name} is there with two sets of labels", "choose a node with --node NAME")
        own[METRICS[name].quantity] = (name, series)
    if not found:
        raise ObserveError(
            f"{paths[0]} has no power of pm_counters", "Omnistat has them with enable_vendor_counters = True"
        )
    return [step_of(found, energies, scrapes, asked, _job(jobs, asked, paths[0]))]


def _node(about: dict[str, str], asked: Asked, path: Path) -> str:
    node = asked.node or about.get("instance", "")
    if not node or len(node) > 255 or not node.isprintable():
        raise ObserveError(f"{path} does not say of which node it is", "name it with --node NAME")
    return node


def _job(jobs: dict[str, dict[str, str]], asked: Asked, path: Path) -> tuple[tuple[str, str], dict[str, str]]:
    if asked.job:
        if jobs and asked.job not in jobs:
            raise ObserveError(f"{path} is of the jobs {', '.join(sorted(jobs)[:5])}, and not of {asked.job}")
        return job_of("", asked, path), jobs.get(asked.job, {})
    if len(jobs) > 1:
        raise ObserveError(f"{path} is of the jobs {', '.join(sorted(jobs)[:5])}", "choose one with --job JOB[.STEP]")
    name = next(iter(jobs), "")
    return job_of(name, asked, path), jobs.get(name, {})


def _compare(rows: dict[str, Any], quantity: str, series: Series, remarks: Remarks, node: str) -> None:
    """Say where a power and the growth of its energy counter are far apart."""
    when, energy = series.sorted(f"the energy of {node}")
    grown, seconds = float(energy[-1] - energy[0]), float(when[-1] - when[0]) / NS
    inside = (rows["time"] > when[0]) & (rows["time"] <= when[-1]) & ~np.isnan(rows[quantity])
    if seconds <= 0 or not grown > 0 or not inside.any():
        return
    weights: Array = rows["span"][inside]
    told, counted = float(np.average(rows[quantity][inside], weights=weights)), grown / seconds
    if abs(told - counted) > _DIFFER * max(told, counted):
        remarks.add(
            quantity, (int(when[0]), int(when[-1])),
            f"its samples are {told:.0f} W on average, and its energy counter says {counted:.0f} W", None, node,
        )  # fmt: skip


def step_of(
    found: dict[Key, dict[str, tuple[str, Series]]], energies: dict[tuple[str, str], Series], scrapes: Scrapes,
    asked: Asked, job: tuple[tuple[str, str], dict[str, str]],
) -> Step:  # fmt: skip
    """Return the step of such figures.

    found     by node and accelerator ('': the node itself) and by quantity, the metric's name in METRICS and its series
    energies  by node and quantity the counters that its power is compared with
    job       job and step, and what labels say of it

    Raises ObserveError: a value is there twice, or in another unit.
    """
    remarks = Remarks()
    made = samples(found, METRICS, remarks, lambda values: values < 0)
    for (node, quantity), series in energies.items():
        if quantity in made.get((node, ""), {}):
            _compare(made[node, ""], quantity, series, remarks, node)
    return _step(made, scrapes, remarks, asked, job)


def _step(
    made: dict[Key, dict[str, Any]], scrapes: Scrapes, remarks: Remarks, asked: Asked,
    job: tuple[tuple[str, str], dict[str, str]],
) -> Step:  # fmt: skip
    (number, step), about = job
    hosts, gpus, devices = [], [], {}  # type: ignore[var-annotated]
    for node, accelerator in sorted(made, key=lambda key: (key[0], int(key[1] or -1))):
        rows, size = made[node, accelerator], len(made[node, accelerator]["time"])
        rows |= {"node": np.full(size, node)}
        if not accelerator:
            hosts.append(rows)
            continue
        own, uuid = devices.setdefault(node, []), f"accel{accelerator}"
        gpus.append(rows | {"uuid": np.full(size, uuid), "gpu": np.full(size, len(own), np.uint16)})
        own.append({"uuid": uuid, "name": asked.model})
    parts = [*hosts, *gpus]
    start, end = lasted(parts, scrapes, remarks)
    for name in sorted(scrapes.others):
        if name.startswith(("omnistat_", "rocm_")):
            remarks.add(name, (start, end), "it is not read: of Omnistat pm_counters are", scrapes.others[name])
    meta = {
        "job": number, "step": step, "start": start, "end": end, "nodes": sorted({node for node, _ in made}),
        "devices": devices, "interval": float(np.median(np.concatenate([part["span"] for part in parts]))),
        **{key: about[key] for key in ("user", "partition") if about.get(key)},
    }  # fmt: skip
    tables = {
        table: columns_of(rows, tuple(column.name for column in TABLES[table]))
        for table, rows in (("host", hosts), ("gpu", gpus))
    }
    return Step(meta, tables | {"quality": remarks.table()})
