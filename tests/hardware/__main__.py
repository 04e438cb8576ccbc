"""Runs everything within the time, and leaves hardware.json and a table. run.sh starts it.

With PIOLET_FAKE_NVML the GPU is simulated, which tries the script out: every figure then says so.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from piolet.base import texts
from piolet.samples.dataset import Dataset, open_dataset
from piolet.score.peaks import peaks_of

from tests.hardware import checks, loads, pretended
from tests.hardware.checks import ABSENT, OFF, OK, Check

ALL_S = 560.0
VET_S = 150.0
VET_PROTOCOL = """\
name: healthy GPU
budget: 120s
evals:
- {type: gpu, max_temp: 90, max_used_memory: 0.1, max_processes: 0}
- type: gpu_health
- {type: gpu_gemm, timeout: 60s}
- {type: gpu_memory_bandwidth, timeout: 60s}
- {type: cuda_kernel, timeout: 60s}
"""
_INIT = "import time, pynvml; a = time.monotonic(); pynvml.nvmlInit(); print(time.monotonic() - a)"


class Bench:
    """What all checks share: where to work, on which GPU, and until when."""

    def __init__(self, room: Path, seconds: float, simulated: str) -> None:
        self.room = room
        self.seconds = seconds
        self.simulated = simulated
        self.device: dict[str, Any] = {}
        self._end = time.monotonic() + ALL_S

    def left(self) -> float:
        """Return the seconds that are left."""
        return self._end - time.monotonic()

    def call(self, words: list[str], within_s: float, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run a command and return what it printed. Raises RuntimeError: it failed, or took too long."""
        own = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")} | environ
        bound = min(within_s, self.left())
        try:
            done = subprocess.run(
                words, cwd=self.room, env=own, capture_output=True, text=True, timeout=max(1.0, bound), check=False,
                stdin=subprocess.DEVNULL,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"it was not over after {bound:.0f} s") from None
        return done

    def piolet(self, *words: str) -> list[str]:
        """Return a command of Piolet's."""
        return [sys.executable, "-I", "-m", "piolet.cli.main", *words]

    def sampled(self, name: str, collector: str, command: list[str], seconds: float) -> Dataset:
        """Run a command with the sampler beside it. Raises RuntimeError."""
        out = self.room / name
        words = self.piolet("score", "run", "--out", str(out), "--interval", "100ms", "--collector", collector)
        done = self.call([*words, "--", *command], seconds + 90, **self.only_first())
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise RuntimeError(f"status {done.returncode}: {last}")
        return open_dataset(out)

    def only_first(self) -> dict[str, str]:
        """Return the variable that shows one GPU."""
        return {"CUDA_VISIBLE_DEVICES": self.device["uuid"]} if self.device else {}


def find(bench: Bench) -> list[Check]:
    """Look at the device, and at how long NVML takes to begin."""
    times = []
    for _ in range(3):
        done = bench.call([sys.executable, "-c", _INIT], 30)
        if done.returncode:
            raise RuntimeError((done.stderr.strip().splitlines() or ["NVML does not begin"])[-1])
        times.append(float(done.stdout))
    pynvml = importlib.import_module("pynvml")
    pynvml.nvmlInit()
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0] or "0"
    by_index = pynvml.nvmlDeviceGetHandleByIndex
    handle = by_index(int(wanted)) if wanted.isdecimal() else pynvml.nvmlDeviceGetHandleByUUID(wanted)
    try:
        clock = pynvml.nvmlDeviceGetMaxClockInfo(handle, 2)
        # Two transfers a clock; bits.
        bandwidth = 2e6 * clock * pynvml.nvmlDeviceGetMemoryBusWidth(handle) / 8
    except pynvml.NVMLError:
        bandwidth = 0.0
    bench.device = {
        "name": pynvml.nvmlDeviceGetName(handle), "uuid": pynvml.nvmlDeviceGetUUID(handle),
        "driver": pynvml.nvmlSystemGetDriverVersion(), "bandwidth": bandwidth,
    }  # fmt: skip
    pynvml.nvmlShutdown()
    return [checks.at_most("nvmlInit", statistics.median(times), 2.0, "s", "median of 3 processes")]


def vet(bench: Bench) -> list[Check]:
    """A healthy GPU passes: what is said to be wrong with it is wrong, or the eval is."""
    (bench.room / "healthy.yaml").write_text(VET_PROTOCOL)
    words = bench.piolet("vet", "run", "healthy.yaml", "--report", "vet.json", "--no-cache")
    bench.call(words, VET_S, **bench.only_first())
    found = []
    for row in json.loads((bench.room / "vet.json").read_text())["records"]:
        name = f"eval {row['eval']}"
        measured = f"{row['measure']} {row['value']:.4g} {row['unit']}".strip() if row["value"] is not None else ""
        said = "; ".join(filter(None, (measured, row["reason"])))
        if row["outcome"] == "inconclusive":
            found.append(checks.absent(name, row["reason"]))
        else:
            fine = row["outcome"] == "pass" and not row["reason"]
            found.append(Check(name, OK if fine else OFF, note=f"{row['outcome']}: {said}"))
    return found


def scores(bench: Bench) -> list[Check]:
    """Each load's own rate against the score."""
    found = []
    for name in loads.NAMES:
        label = f"score of '{name}'"
        if bench.left() < bench.seconds + 30:
            found.append(checks.absent(label, "the ten minutes were over"))
            continue
        try:
            data = bench.sampled(f"load-{name}", "auto", _load(bench, name), bench.seconds)
            load = json.loads((bench.room / f"{name}.json").read_text())
        except (RuntimeError, OSError, ValueError) as error:
            found.append(checks.absent(label, str(error)))
            continue
        found += checks.of_load(name, load, _chunk(data), peaks_of(bench.device["name"]), bench.device["bandwidth"])
    return found


def _load(bench: Bench, name: str) -> list[str]:
    path = str(bench.room / f"{name}.json")
    if bench.simulated:
        Path(bench.simulated).write_text(pretended.SCRIPT.format(pretended.WORDS[name]))
        return [sys.executable, "-m", "tests.hardware.pretended", name, str(bench.seconds), path]
    return [os.environ.get("TORCH_PYTHON", sys.executable), loads.__file__, name, str(bench.seconds), path]


def _chunk(data: Dataset) -> dict[str, Any]:
    parts = list(data.nodes[0].chunks(checks.COLUMNS))
    return {key: np.concatenate([part[key] for part in parts]) for key in ("span", "end", *checks.COLUMNS)}


def sources(bench: Bench) -> list[Check]:
    """GPM and DCGM beside each other, under the same load: they read the same counters."""
    means: dict[str, dict[str, float]] = {}
    for collector in ("gpm", "dcgm"):
        try:
            data = bench.sampled(f"source-{collector}", collector, _load(bench, "product"), bench.seconds)
            header = data.nodes[0].facts.header
            if collector not in [one["name"] for one in header["collectors"]]:
                raise RuntimeError(header.get("not_used", {}).get(collector, "it was not taken"))
            load = json.loads((bench.room / "product.json").read_text())
        except (RuntimeError, OSError, ValueError, KeyError) as error:
            return [checks.absent("GPM against DCGM", f"{collector}: {error}")]
        first, last = load["segments"][0], load["segments"][-1]
        samples = checks.window(_chunk(data), first["begin"] + checks.SETTLE_S, last["end"] - checks.END_S)
        means[collector] = {name: checks.mean(samples, name) for name in ("tensor", "dram", "sm")}
    return [
        checks.near(f"GPM against DCGM: {name}", means["gpm"][name], means["dcgm"][name], 1.0)
        for name in means["gpm"]
    ]  # fmt: skip


def cost(bench: Bench) -> list[Check]:
    """What sampling costs at ten times a second."""
    data = bench.sampled("cost", "auto", ["sleep", str(max(2.0, bench.seconds))], bench.seconds)
    quality = data.nodes[0].facts.quality
    names = ", ".join(one["name"] for one in data.nodes[0].facts.header["collectors"])
    return [
        checks.at_most("sampler: share of a core", 100 * quality["process_cores"], 1.0, "%", names),
        checks.at_most("sampler: resident memory", quality["rss_max_bytes"] / 1e6, 60.0, "MB", names),
    ]


def table(found: list[Check], device: Mapping[str, Any], mark: str) -> list[str]:
    """Return the lines for a person."""
    rows = [("check", "state", "found", "expected", "within", "")]
    for one in found:
        value, expected = ("" if number is None else f"{number:.4g}" for number in (one.value, one.expected))
        limit = "" if one.limit is None else f"{one.limit:g} {one.unit}"
        rows.append((one.name, one.state, value, expected, limit, one.note))
    head = [f"{device.get('name', 'no GPU')}, driver {device.get('driver', 'unknown')}"]
    if mark:
        head.append(f"SIMULATED ({mark}): this tries the script out, and says nothing of real hardware")
    counts = ", ".join(f"{sum(one.state == state for one in found)} {state}" for state in (OK, OFF, ABSENT))
    return [*head, *(line.rstrip() for line in texts.columns(rows)), counts]


def main() -> int:
    """Return 0: all that could be checked agrees; 1: something does not; 2: nothing could be checked."""
    parser = argparse.ArgumentParser(prog="tests.hardware")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--room", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each load")
    args = parser.parse_args()
    bench = Bench(args.room.resolve(), args.seconds, os.environ.get("PIOLET_FAKE_NVML", ""))
    begun = time.time()
    found: list[Check] = []
    parts: tuple[tuple[str, Callable[[Bench], list[Check]]], ...] = (
        ("nvmlInit", find), ("vetting", vet), ("scores", scores), ("GPM against DCGM", sources), ("sampler", cost),
    )  # fmt: skip
    for name, part in parts:
        if name != "nvmlInit" and not bench.device:
            found.append(checks.absent(name, "there is no GPU"))
            continue
        if bench.left() < 20:
            found.append(checks.absent(name, "the ten minutes were over"))
            continue
        print(f"{name} …", file=sys.stderr, flush=True)
        try:
            found += part(bench)
        except Exception as error:  # noqa: BLE001 - one part that fails must not cost the others
            found.append(checks.absent(name, f"{type(error).__name__}: {error}"))
    mark = pretended.mark(bench.room)
    document = {
        "version": 1, "started": begun, "seconds": round(time.time() - begun, 1), "device": bench.device,
        "simulated": mark, "checks": [one.as_dict() for one in found],
    }  # fmt: skip
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "hardware.json").write_text(json.dumps(document, indent=1) + "\n")
    print("\n".join(table(found, bench.device, mark)))
    states = {one.state for one in found}
    return 1 if OFF in states else 0 if OK in states and bench.device else 2


if __name__ == "__main__":
    sys.exit(main())
