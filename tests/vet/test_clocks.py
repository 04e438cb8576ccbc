"""Clocks: idle is idle, and what computes at 210 MHz is stuck, whatever it says. GPUs are simulated."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulators.nvml.build import build
from tests.vet.test_nvml import vet


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("nvml")).parent


LOADED = "clock_sm 210\nutilisation 100\n"


@pytest.mark.parametrize(
    ("script", "outcome", "reason"),
    [
        ("clock_sm 210\nthrottle 1\n", "pass", ""),
        ("clock_sm 210\nthrottle 1\nutilisation 5\n", "pass", ""),
        ("clock_sm 210\nthrottle 0x3\n", "pass", ""),
        (LOADED + "throttle 0\n", "fail", "its clocks are low, and no reason is given: 210 of 1980 MHz"),
        (LOADED + "throttle 1\n", "fail", "its clocks are low, and no reason is given: 210 of 1980 MHz"),
        (LOADED + "throttle 2\n", "pass", "its clocks are set low: 210 of 1980 MHz"),
        (LOADED + "throttle 4\n", "pass", "its clocks are very low: 210 of 1980 MHz, for its power cap"),
        (LOADED + "throttle 0x80\n", "fail", "its clocks are lowered: power brake"),
        ("clock_sm 1200\nutilisation 100\nthrottle 4\n", "pass", ""),  # a power cap at work is none
    ],
)
def test_clocks_at_rest_and_at_work(library: Path, tmp_path: Path, script: str, outcome: str, reason: str) -> None:
    row = vet(library, tmp_path, f"gpus 3\ngpu\n{script}")[1]["gpu_health"]
    assert (row["outcome"], row["reason"]) == (outcome, reason and f"GPU 3: {reason}"), row


_LOOK = """
import json, sys
from types import SimpleNamespace as Simple
from piolet.vet.evals import gpu_gemm

class Event:
    asked = 0
    def record(self): pass
    def query(self):
        self.asked += 1
        return self.asked > int(sys.argv[1])

work = []
properties = lambda device: Simple(uuid="00000001-0000-0000-0000-000000000000")
torch = Simple(cuda=Simple(Event=Event, get_device_properties=properties))
print(json.dumps([gpu_gemm._look(torch, 0, lambda: work.append(1), 0.1), len(work)]))
"""


@pytest.mark.parametrize(
    ("script", "looks", "found"),
    [
        ("clock_sm 210\nthrottle 1\n", 5, ["clocks_stuck", ": 210 of 1980 MHz under load", 210]),
        ("clock_sm 210\nthrottle 0\n", 5, ["clocks_stuck", ": 210 of 1980 MHz under load", 210]),
        ("clock_sm 210\nthrottle 2\n", 5, ["clocks_locked", ": 210 of 1980 MHz under load", 210]),
        ("clock_sm 600\nthrottle 4\n", 5, ["clocks_capped", ": 600 of 1980 MHz under load", 600]),
        ("clock_sm 1755\nthrottle 4\n", 5, None),
        ("clock_sm 210\nthrottle 1\n", 1, None),  # it was over when the clock was looked at
        ("fail nvmlDeviceGetClockInfo 3\n", 5, None),
        ("fail nvmlDeviceGetClockInfo 15\n", 5, None),
    ],
)
def test_clocks_under_the_load_of_gpu_gemm(
    library: Path, tmp_path: Path, script: str, looks: int, found: object
) -> None:
    (tmp_path / "script").write_text(f"gpu\ngpu\n{script}")
    own = {**os.environ, "PIOLET_FAKE_NVML": str(tmp_path / "script"), "LD_LIBRARY_PATH": str(library)}
    command = [sys.executable, "-c", _LOOK, str(looks)]
    done = subprocess.run(command, env=own, capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(done.stdout) == [found, 4]
