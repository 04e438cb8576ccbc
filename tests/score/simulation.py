"""Runs the sampler over scripted GPUs, in a process of its own and in the script's time: an hour takes a second.

`python -m tests.score.simulation DIRECTORY SECONDS PERIOD COLLECTOR BEGIN [SKIP_FROM SKIP_TO]` in an environment made
by `environment`; it leaves DIRECTORY/node.journal.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
from pathlib import Path

import piolet
from piolet.api import Target
from piolet.samples.choose import choose
from piolet.samples.collectors import host
from piolet.samples.dataset import Dataset, open_dataset
from piolet.samples.journal import open_for_writing
from piolet.samples.sampler import Clock, SampledStep, Sampler, Sink

from tests.simulators.dcgm import build as dcgm
from tests.simulators.nvml import build as nvml

ROOT = Path(__file__).resolve().parents[2]
BASE = 1_700_000_000
LATER_US = 3_600_000_000


def build(directory: Path) -> Path:
    """Compile both fakes into `directory`."""
    nvml.build(directory)
    dcgm.build(directory)
    return directory


def environment(libraries: Path, script: Path) -> dict[str, str]:
    """Return an environment in which the scripted GPUs are there."""
    return {
        "PATH": "/usr/bin:/bin",
        "LD_LIBRARY_PATH": str(libraries),
        "PIOLET_FAKE_NVML": str(script),
        "PYTHONPATH": f"{Path(piolet.__file__).parents[1]}:{ROOT}",
    }


def simulate(
    libraries: Path,
    directory: Path,
    script: str,
    seconds: float,
    period: float = 0.1,
    collector: str = "gpm",
    *skip: float,
    begin: float = 0,
) -> Dataset:
    """Sample `seconds` of a script, from `begin` on, and return the data set (with a journal in it)."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "script"
    path.write_text(script)
    words = [str(directory), str(seconds), str(period), collector, str(begin), *map(str, skip)]
    command = [sys.executable, "-m", __name__, *words]
    done = subprocess.run(
        command, env=environment(libraries, path), cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return open_dataset(directory)


class ScriptedClock:
    """A clock that only moves when the sampler sleeps; the fake libraries follow it."""

    def __init__(self) -> None:
        self.now = 0
        self._clocks: list[ctypes.c_double] = []

    def load(self, collector: str) -> None:
        """Take the clock of the library that a collector uses into our hands."""
        name = "libdcgm.so.4" if collector == "dcgm" else "libnvidia-ml.so.1"
        library = ctypes.CDLL(name)
        self._clocks.append(ctypes.c_double.in_dll(library, "piolet_simulation_clock"))
        if collector == "dcgm":
            # The collector asks for what comes after it began, by the machine's clock: the script is later than that.
            began = ctypes.c_int64.in_dll(library, "piolet_simulation_began")
            began.value = time.time_ns() // 1000 + LATER_US
        self.set(0)

    def set(self, now: int) -> None:
        """Move to `now` nanoseconds."""
        self.now = now
        for clock in self._clocks:
            clock.value = now / 1e9

    def clock(self) -> Clock:
        """Return what the sampler takes."""
        return Clock(
            lambda: self.now + 10**9,
            lambda: self.now + BASE * 10**9,
            lambda seconds: self.set(self.now + max(1, round(seconds * 1e9))),
        )


def main(words: list[str]) -> None:
    """Sample; with SKIP the sampler is held up from one second to another."""
    directory, seconds, period, collector = Path(words[0]), float(words[1]), float(words[2]), words[3]
    skip = [round(float(word) * 1e9) for word in words[5:7]]
    scripted = ScriptedClock()
    scripted.load(collector)
    begin = round(float(words[4]) * 1e9)
    scripted.set(begin)
    collectors, why_not = choose(Target(period=period), collector)
    for each in collectors:
        if isinstance(each, host.HostCollector):
            each.close()
    collectors = [each for each in collectors if not isinstance(each, host.HostCollector)]
    if collector == "dcgm":
        # The library's stamps begin when it was initialised; the scripted clock, at one second.
        began = ctypes.c_int64.in_dll(ctypes.CDLL("libdcgm.so.4"), "piolet_simulation_began").value
        collectors[0]._offset_ns = began * 1000 - 10**9  # type: ignore[attr-defined]
    sampler = Sampler(scripted.clock())
    sink = Sink(open_for_writing(str(directory / "node.journal")))
    session = sampler.add(SampledStep("1", "0", "node", os.getuid()), collectors, period, sink, why_not)
    end = begin + round(seconds * 1e9)

    def stop() -> bool:
        if skip and skip[0] <= scripted.now < skip[1]:
            scripted.set(skip[1])
        return scripted.now >= end

    sampler.run_until(stop)
    sampler.remove(session)


if __name__ == "__main__":
    main(sys.argv[1:])
