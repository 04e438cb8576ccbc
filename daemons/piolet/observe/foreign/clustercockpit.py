"""ClusterCockpit's job archive: a directory for each job with meta.json and data.json or data.json.gz.

By its JSON schemas job-meta, job-data and job-metric-data (cc-lib, schema/schemas, read in November 2026) and
clustercockpit.org/docs/reference/cc-backend/jobarchive. A series begins at the job's start; a value is of the timestep
after its place; null is none. Units have a base and a prefix of powers of 1000, or of 1024 with "i". Of a metric of
cores, sockets or hardware threads the node's value is their sum. What it has of a job is of no step of it: the step is
called `batch`; and network, file systems and memory are those of the whole node.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from piolet.base.errors import ObserveError
from piolet.observe.foreign.common import (
    NS,
    Array,
    Asked,
    Remarks,
    Step,
    columns_of,
    job_of,
    json_of,
    sound,
    text_of,
    whole_of,
)
from piolet.observe.layout import TABLES

NAME, TEXT = "clustercockpit", "ClusterCockpit's job archive: directories with meta.json and data.json or data.json.gz"

META, DATA = "meta.json", ("data.json", "data.json.gz")
_JOBS_MOST, _METRICS_MOST, _NODES_MOST, _SERIES_MOST, _VALUES_MOST = 10_000, 1000, 100_000, 1_000_000, 200_000_000
_PREFIXES = {prefix: 1000.0**power for power, prefix in enumerate(("", "K", "M", "G", "T", "P"))}
_PREFIXES |= {f"{prefix}i": 1024.0**power for power, prefix in enumerate("KMGTP", 1)} | {"k": 1000.0, "m": 0.001}
_BASES = {"B": ("B", "Byte", "Bytes"), "B/s": ("B/s", "Bytes/s"), "W": ("W", "Watt", "Watts"), "Hz": ("Hz",)}
_BASES |= {"degC": ("degC", "°C", "C"), "%": ("%", "", "percent"), "1/s": ("requests/s", "1/s", "IOps", "")}

# By the names of its metrics (clustercockpit.org/docs/tutorials/prod-metric-list) and of its collectors: what each is
# of ours, the base of its unit, and what turns that into ours.
_OF_GPU = {
    **dict.fromkeys(("acc_utilization", "acc_used", "nv_util"), ("utilisation", "%", 0.01)),
    **dict.fromkeys(("acc_mem_used", "nv_fb_mem_used", "nv_mem_used"), ("memory_used", "B", 1.0)),
    **dict.fromkeys(("acc_power", "nv_power_usage"), ("power", "W", 1.0)),
    "nv_temp": ("temperature", "degC", 1.0),
    "nv_sm_clock": ("clock_sm", "Hz", 1e-6),
    "nv_mem_clock": ("clock_memory", "Hz", 1e-6),
}
_OF_HOST = {"mem_used": ("memory", "B", 1.0), "cpu_power": ("cpu_power", "W", 1.0), "cpu_user": ("cpu", "%", 0.01)}
_OF_NET = {
    **dict.fromkeys(("ic_read_bw", "ib_recv", "ib_recv_bw"), ("fast network", "infiniband", "rx")),
    **dict.fromkeys(("ic_write_bw", "ib_xmit", "ib_xmit_bw"), ("fast network", "infiniband", "tx")),
    "eth_read_bw": ("ethernet", "ethernet", "rx"),
    "eth_write_bw": ("ethernet", "ethernet", "tx"),
}
_OF_FILES = {
    "read_bw": ("read", "B/s"), "write_bw": ("write", "B/s"),
    "read_req": ("read_operations", "1/s"), "write_req": ("write_operations", "1/s"),
}  # fmt: skip
_WHOLE_NODE = "of the whole node, not of the step"

Series = dict[tuple[str, str], Array]  # by host and id
Rows = dict[tuple[Any, ...], dict[str, Any]]


def is_one(path: Path) -> bool:
    """Return whether a directory or a file is of such an archive."""
    if path.is_dir():
        return next(_below(path), None) is not None
    return path.name in (META, *DATA) and (path.parent / META).is_file()


def read(paths: Sequence[Path], asked: Asked) -> list[Step]:
    """Return the jobs of archives. Raises ObserveError: there is none, or a file is not what the schemas say."""
    found = [place for path in paths for place in (_below(path) if path.is_dir() else iter((path.parent,)))]
    if len(found) > _JOBS_MOST:
        raise ObserveError(f"more than {_JOBS_MOST} jobs are not read at once", "name a part of the archive")
    steps = []
    for place in dict.fromkeys(found):
        meta = json_of(place / META, 64 << 20)
        number = _meta_number(meta, place / META)
        if not asked.job or asked.job == number:
            steps.append(_step(place, meta, asked))
    if not steps:
        raise ObserveError(f"{paths[0]} has no job {asked.job}" if asked.job else f"{paths[0]} has no {META} of a job")
    steps.sort(key=lambda step: (step.meta["cluster"], step.meta["job"], step.meta["start"]))
    for _, runs in itertools.groupby(steps, key=lambda step: (step.meta["cluster"], step.meta["job"])):
        for restarts, step in enumerate(runs):
            step.meta |= {"restarts": restarts} if restarts else {}
    return steps


def _below(path: Path) -> Iterator[Path]:
    for meta in sorted(path.rglob(META)):
        if any((meta.parent / name).is_file() for name in DATA):
            yield meta.parent


def _meta_number(meta: Any, path: Path) -> str:
    if not isinstance(meta, dict):
        raise ObserveError(f"{path} is no object")
    return str(whole_of(meta.get("jobId"), "jobId", path, 2**32))


def _step(place: Path, about: dict[str, Any], asked: Asked) -> Step:
    path = place / META
    start, duration = (whole_of(about.get(key), key, path, 4102444800) for key in ("startTime", "duration"))
    if start < 946684800:
        raise ObserveError(f"{path}: startTime is before 2000", "it is in seconds since 1970")
    nodes, threads = _resources(about, path)
    job, step = job_of(_meta_number(about, path), asked, path)
    meta: dict[str, Any] = {
        "job": job,
        "step": step,
        "start": start * NS,
        "end": (start + duration) * NS,
        "nodes": nodes,
    }
    for ours, theirs in (("cluster", "cluster"), ("user", "user"), ("account", "project"), ("partition", "partition")):
        if theirs in about:
            meta[ours] = text_of(about[theirs], theirs, path)
    meta.setdefault("cluster", "")
    if isinstance(about.get("metaData"), dict) and about["metaData"].get("jobName"):
        meta["name"] = text_of(about["metaData"]["jobName"], "jobName", path)
    if "jobState" in about:
        meta["state"] = text_of(about["jobState"], "jobState", path).upper()
    if about.get("arrayJobId"):
        meta["array_job"] = str(whole_of(about["arrayJobId"], "arrayJobId", path, 2**32))
    data_path = next((place / name for name in DATA if (place / name).is_file()), place / DATA[0])
    reader = _Reader(json_of(data_path), data_path, (start, duration), nodes, threads)
    return Step(meta | reader.facts(asked.model), reader.tables())


def _resources(about: dict[str, Any], path: Path) -> tuple[list[str], dict[str, int]]:
    """Return names of the job's nodes, and how many hardware threads it had there, where that is told."""
    resources = about.get("resources")
    if not isinstance(resources, list) or not 0 < len(resources) <= _NODES_MOST:
        raise ObserveError(f"{path}: resources is no list of nodes")
    nodes, threads = [], {}
    for one in resources:
        if not isinstance(one, dict):
            raise ObserveError(f"{path}: resources is no list of nodes")
        host = text_of(one.get("hostname"), "hostname", path)
        if not host or host in threads:
            raise ObserveError(f"{path}: the node {host!r} is there twice, or has no name")
        own = one.get("hwthreads")
        nodes.append(host)
        threads[host] = len(own) if isinstance(own, list) else 0
    total = about.get("numHwthreads")
    if type(total) is int and 0 < total <= 10**8 and not any(threads.values()):
        threads = dict.fromkeys(nodes, round(total / len(nodes)))
    return nodes, threads


class _Reader:
    """Makes tables of what data.json has."""

    def __init__(self, data: Any, path: Path, when: tuple[int, int], nodes: list[str], threads: dict[str, int]) -> None:
        if not isinstance(data, dict) or len(data) > _METRICS_MOST:
            raise ObserveError(f"{path} is no object of at most {_METRICS_MOST} metrics")
        self._path, self._threads, self._nodes = path, threads, dict.fromkeys(nodes)
        self._start, self._duration = when
        self._whole = (self._start * NS, (self._start + self._duration) * NS)
        self._remarks, self._count = Remarks(), 0
        self._gpus, self._hosts, self._nets, self._files = {}, {}, {}, {}  # type: ignore[var-annotated]
        for name, metric in data.items():
            if name == "filesystems":
                self._read_files(metric)
            elif name in _OF_GPU:
                self._read_gpus(name, metric)
            elif name in _OF_HOST:
                self._read_hosts(name, metric)
            elif name in _OF_NET:
                self._read_net(name, metric)
            else:
                source = name if len(name) <= 128 and name.isprintable() else "a metric"
                self._remarks.add(source, self._whole, "the layout has no column for it")

    def facts(self, model: str) -> dict[str, Any]:
        """Return what meta.json is to have of the GPUs and of time."""
        devices: dict[str, list[dict[str, str]]] = {}
        for host, device, _ in sorted(self._gpus):
            own = devices.setdefault(host, [])
            if not own or own[-1]["uuid"] != device:
                own.append({"uuid": device, "name": model})
        steps = [step for _, _, step in (*self._gpus, *self._hosts)]
        return {"devices": devices} | ({"interval": float(min(steps))} if steps else {})

    def tables(self) -> dict[str, dict[str, Any]]:
        """Return the tables' columns."""
        index: dict[tuple[str, str], int] = {}
        for host, device, _ in sorted(self._gpus):
            index.setdefault((host, device), sum(1 for one, _ in index if one == host))
        gpus = [
            self._timed(rows, step, node=host, uuid=device, gpu=np.uint16(index[host, device]))
            for (host, device, step), rows in sorted(self._gpus.items())
        ]
        hosts = [self._timed(rows, step, node=host) for (host, _, step), rows in sorted(self._hosts.items())]
        nets = [
            self._timed(rows, step, node=host, port=port, kind=kind)
            for (host, port, kind, step), rows in sorted(self._nets.items())
        ]
        io = [
            self._timed(rows, step, node=host, mount=mount, kind=kind, scope="node")
            for (host, mount, kind, step), rows in sorted(self._files.items())
        ]
        parts = {"gpu": gpus, "host": hosts, "net": nets, "io": io}
        made = {name: columns_of(rows, tuple(one.name for one in TABLES[name])) for name, rows in parts.items()}
        return made | {"quality": self._remarks.table()}

    def _timed(self, rows: dict[str, Array], step: int, **names: Any) -> dict[str, Any]:
        size = max(len(values) for values in rows.values())
        ends = (self._start + (np.arange(size, dtype=np.int64) + 1) * step) * NS
        made: dict[str, Any] = {"time": ends, "span": np.full(size, float(step))}
        made |= {name: np.full(size, value) for name, value in names.items()}
        for quantity, values in rows.items():
            made[quantity] = np.append(values, np.full(size - len(values), math.nan))
        return made

    def _put(self, table: Rows, key: tuple[Any, ...], quantity: str, values: Array, source: str) -> None:
        own = table.setdefault(key, {})
        if quantity in own:
            raise ObserveError(f"{self._path}: {quantity} of {key[0]} is there twice, the second time as {source}")
        own[quantity] = values

    def _read_gpus(self, name: str, metric: Any) -> None:
        quantity, base, factor = _OF_GPU[name]
        for step, series in self._scope(name, metric, ("accelerator",), base):
            for (host, device), values in series.items():
                if not device:
                    raise ObserveError(f"{self._path}: a series of {name} does not say of which accelerator it is")
                clean = sound(values * factor, quantity, name, self._remarks, self._whole, host, device)
                self._put(self._gpus, (host, device, step), quantity, clean, name)

    def _read_hosts(self, name: str, metric: Any) -> None:
        quantity, base, factor = _OF_HOST[name]
        scopes = ("node", "socket", "memoryDomain", "core", "hwthread")
        parts = isinstance(metric, dict) and "node" not in metric
        for step, series in self._scope(name, metric, scopes, base):
            for host, values in _by_host(series):
                if quantity == "cpu" and not parts:  # the mean of the node's threads
                    if not self._threads[host]:
                        self._remarks.add(
                            name, self._whole, "it is a share, and of how many threads is not told", None, host
                        )
                        continue
                    values = values * self._threads[host]
                clean = sound(values * factor, quantity, name, self._remarks, self._whole, host)
                self._put(self._hosts, (host, "", step), quantity, clean, name)
        what = "processor time of users, without the kernel's" if quantity == "cpu" else _WHOLE_NODE
        self._remarks.add(quantity, self._whole, what)

    def _read_net(self, name: str, metric: Any) -> None:
        port, kind, way = _OF_NET[name]
        for step, series in self._scope(name, metric, ("node",), "B/s"):
            for host, values in _by_host(series):
                self._put(self._nets, (host, port, kind, step), way, values, name)

    def _read_files(self, listed: Any) -> None:
        if not isinstance(listed, list) or len(listed) > _METRICS_MOST:
            raise ObserveError(f"{self._path}: filesystems is no list")
        for one in listed:
            if not isinstance(one, dict):
                raise ObserveError(f"{self._path}: filesystems is no list of objects")
            mount, kind = (text_of(one.get(key), f"{key} of a file system", self._path) for key in ("name", "type"))
            for metric, (column, base) in _OF_FILES.items():
                if metric in one:
                    for step, series in self._scope(f"{metric} of {mount}", one[metric], ("node",), base):
                        for host, values in _by_host(series):
                            self._put(self._files, (host, mount, kind, step), column, values, metric)

    def _scope(self, name: str, metric: Any, scopes: Sequence[str], base: str) -> Iterator[tuple[int, Series]]:
        """Yield the timestep and the series, in the base unit, of the first of these scopes that a metric has."""
        if not isinstance(metric, dict):
            raise ObserveError(f"{self._path}: {name} is no object")
        scope = next((one for one in scopes if one in metric), None)
        if scope is None:
            self._remarks.add(name, self._whole, f"it is not told by {scopes[0]}")
            return
        told = metric[scope]
        if not isinstance(told, dict) or not isinstance(told.get("series"), list):
            raise ObserveError(f"{self._path}: {name} has no series")
        factor = self._factor(name, told.get("unit"), base)
        step = whole_of(told.get("timestep"), f"timestep of {name}", self._path, 86400)
        if not step:
            raise ObserveError(f"{self._path}: timestep of {name} is 0")
        if len(told["series"]) > _SERIES_MOST:
            raise ObserveError(f"{self._path}: {name} has more than {_SERIES_MOST} series")
        series: Series = {}
        for one in told["series"]:
            key, values = self._series(name, one, step)
            if key in series:
                raise ObserveError(f"{self._path}: {name} has two series of {' '.join(key).strip()}")
            series[key] = values * factor
        if missing := sorted(self._nodes.keys() - {host for host, _ in series}):
            for host in missing:
                self._remarks.add(name, self._whole, "there is no series of this node", None, host)
        yield step, series

    def _series(self, name: str, one: Any, step: int) -> tuple[tuple[str, str], Array]:
        if not isinstance(one, dict) or not isinstance(one.get("data"), list):
            raise ObserveError(f"{self._path}: a series of {name} has no data")
        host = text_of(one.get("hostname"), f"hostname of {name}", self._path)
        if host not in self._nodes:
            raise ObserveError(f"{self._path}: {name} is of {host}, which is no node of the job")
        device = text_of(str(one["id"]) if type(one.get("id")) is int else one.get("id") or "", "id", self._path)
        data = one["data"]
        self._count += len(data)
        if self._count > _VALUES_MOST:
            raise ObserveError(f"{self._path} has more than {_VALUES_MOST} values")
        if len(data) > self._duration / step + 2:
            raise ObserveError(
                f"{self._path}: {name} of {host} has {len(data)} values of {step} s each, and the job took"
                f" {self._duration} s",
                "timestep is in seconds",
            )
        if not set(map(type, data)) <= {int, float, type(None)}:
            raise ObserveError(f"{self._path}: the data of {name} of {host} are no numbers")
        try:
            values = np.array(data, np.float64)
        except OverflowError:
            raise ObserveError(f"{self._path}: the data of {name} of {host} have a number beyond all bounds") from None
        if blank := int(np.isnan(values).sum()):
            self._remarks.add(name, self._whole, "null", blank, host, device or None)
        if short := max(0, math.floor(self._duration / step) - len(values)):
            at = (self._start + len(values) * step) * NS
            self._remarks.add(name, (at, self._whole[1]), "the series ends before the job", short, host, device or None)
        return (host, device), values

    def _factor(self, name: str, unit: Any, base: str) -> float:
        """Return what turns a metric's unit into its base. Raises ObserveError: it is of another base."""
        if isinstance(unit, str):  # of archives before version 1
            told = unit
            choices = {prefix + one: factor for one in _BASES[base] for prefix, factor in _PREFIXES.items()}
        elif (
            isinstance(unit, Mapping)
            and isinstance(unit.get("base", ""), str)
            and isinstance(unit.get("prefix", ""), str)
        ):
            told = f"{unit.get('prefix', '')}|{unit.get('base', '')}"
            choices = {f"{prefix}|{one}": factor for one in _BASES[base] for prefix, factor in _PREFIXES.items()}
        else:
            raise ObserveError(f"{self._path}: {name} has no unit")
        if told not in choices:
            raise ObserveError(f"{self._path}: {name} is in {told.replace('|', '')[:40]!r}, and {base} is expected")
        return choices[told]


def _by_host(series: Series) -> Iterator[tuple[str, Array]]:
    """Yield of each host its values, where it has parts their sum; of a node there is one series, with an id or not."""
    hosts: dict[str, list[Array]] = {}
    for (host, _), values in series.items():
        hosts.setdefault(host, []).append(values)
    for host, own in hosts.items():
        size = max(map(len, own))
        yield host, np.sum([np.append(values, np.full(size - len(values), math.nan)) for values in own], axis=0)
