"""What scoring costs: an application beside it, the sampler itself, and a report of a large machine.

The GPUs are simulated (tests/simulators), the processors and the disk are not.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.benchmarks.cluster import ROOT, Cluster
from tests.benchmarks.paired import sampled
from tests.benchmarks.steps import Row
from tests.score import simulation

SAMPLED_S = 20.0
# A fixed amount of work on one core that says how long it took: what the application feels, without Slurm's part.
APPLICATION = (
    "import time; a = time.perf_counter(); sum(i * i % 7 for i in range(6_000_000)); print(time.perf_counter() - a)"
)
_SCRIPT = "gpu\nload matmul 60 50 2\n" * 4


@dataclass(frozen=True)
class Sampling:
    """What a sampler told of itself after SAMPLED_S seconds of 4 simulated GPUs at 10 Hz."""

    collector: str
    cores: float
    rss_mb: float
    coverage: float


@dataclass(frozen=True)
class Report:
    """A report of a generated data set."""

    gpus: int
    hours: float
    gigabytes: float
    seconds: float
    rss_gib: float


def application(cluster: Cluster, rounds: int) -> Row:
    """A CPU-bound application with and without --score, timed by itself."""

    def seconds(*options: str) -> float:
        return float(cluster.run("srun", "-N1", *options, sys.executable, "-c", APPLICATION))

    scratch = f"/tmp/piolet-bench-{os.getpid()}"
    count = iter(range(10**6))
    try:
        pairs = sampled(seconds, lambda: seconds(f"--score=interval=100ms,out={scratch}/{next(count)}"), rounds)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return Row("CPU-bound application, its own time: with --score at 10 Hz / without", pairs, "no difference")


def sampling(collector: str) -> Sampling:
    """Sample for a while, and return what the data set says of the cost."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        simulation.build(directory)
        (directory / "script").write_text(_SCRIPT)
        environment = simulation.environment(directory, directory / "script")
        piolet = [str(Path(sys.executable).parent / "piolet"), "score"]
        data = str(directory / "data")
        subprocess.run(
            [*piolet, "run", "--interval", "100ms", "--collector", collector, "--out", data, "sleep", str(SAMPLED_S)],
            env=environment,
            check=True,
            capture_output=True,
            timeout=SAMPLED_S + 60,
        )
        exported = subprocess.run(
            [*piolet, "export", "--format", "json", data], env=environment, check=True, capture_output=True, timeout=60
        )
        summary = json.loads(exported.stdout)
    cores, rss = summary["cost"]
    return Sampling(collector, cores, rss / 1e6, summary["score"]["coverage"])


def report(nodes: int, hours: float) -> Report:
    """Generate a data set with four GPUs on each node at 1 Hz, and make its report."""
    base = ROOT / "build"
    with tempfile.TemporaryDirectory(dir=base) as name:
        data = Path(name) / "data"
        generate = [
            sys.executable,
            "-m",
            "tests.score.generate",
            str(data),
            "--nodes",
            str(nodes),
            "--hours",
            str(hours),
        ]
        subprocess.run(generate, cwd=ROOT, check=True, capture_output=True, timeout=1200)
        size = sum(path.stat().st_size for path in data.iterdir())
        begin = time.perf_counter()
        process = subprocess.Popen([str(Path(sys.executable).parent / "piolet"), "score", "report", str(data)])
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begin
    if status:
        raise RuntimeError(f"the report ended with status {os.waitstatus_to_exitcode(status)}")
    return Report(4 * nodes, hours, size / 1e9, seconds, usage.ru_maxrss / 2**20)


def idle_cores(seconds: float) -> float:
    """Return the cores that a Python takes that does nothing but wake up ten times a second: the baseline."""
    code = f"import time\nend = time.monotonic() + {seconds}\nwhile time.monotonic() < end: time.sleep(0.1)"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-S", "-c", code], check=True, timeout=seconds + 60)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / seconds


def show_cost() -> list[object]:
    """Print the sampler's cost with each collector, beside a process that does nothing."""
    nothing = idle_cores(SAMPLED_S)
    print(f"  a Python that only wakes up at 10 Hz: {nothing * 100:.2f} % of a core, its start included")
    out: list[object] = [{"idle_cores": nothing}]
    for collector in ("gpm", "dcgm"):
        found = sampling(collector)
        print(
            f"  sampler, 4 simulated GPUs at 10 Hz, {collector}: {found.cores * 100:.2f} % of a core,"
            f" {found.rss_mb:.0f} MB, coverage {found.coverage:.1%}   aim < 1 %, < 60 MB",
            flush=True,
        )
        out.append(asdict(found))
    return out


def show_report() -> list[object]:
    """Print what a report of 1,024 GPUs and a day takes."""
    found = report(256, 24)
    print(
        f"  report of {found.gpus} generated GPUs, {found.hours:.0f} h at 1 Hz ({found.gigabytes:.2f} GB):"
        f" {found.seconds:.0f} s, {found.rss_gib:.2f} GiB   aim < 60 s, < 2 GiB",
        flush=True,
    )
    return [asdict(found)]
