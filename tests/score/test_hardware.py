"""tests/hardware: what it would say of real GPUs, tried out on simulated ones; and that a wrong score is found."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from piolet.score.peaks import Peaks

from tests.hardware import checks, loads
from tests.simulators.nvml.build import build

ROOT = Path(__file__).resolve().parents[2]


def test_the_script_on_a_simulated_gpu(tmp_path: Path) -> None:
    """All parts run; it says that nothing of it is real, and names what is not here."""
    library, script = build(tmp_path), tmp_path / "script"
    script.write_text("gpu\n")
    environ = {**os.environ, "LD_LIBRARY_PATH": str(library.parent), "PIOLET_FAKE_NVML": str(script)}
    words = [str(ROOT / "tests/hardware/run.sh"), str(tmp_path / "out"), "--seconds", "2.5"]
    done = subprocess.run(words, env=environ, capture_output=True, text=True, timeout=200, check=False)
    assert "SIMULATED (scripted GPUs)" in done.stdout and "Traceback" not in done.stderr
    found = json.loads((tmp_path / "out/hardware.json").read_text())
    assert found["simulated"] == "scripted GPUs"
    states = {one["name"]: one["state"] for one in found["checks"]}
    assert {states[f"score of '{name}'"] for name in loads.NAMES} == {"ok"}, done.stdout
    assert {state for name, state in states.items() if name != "sampler: share of a core"} == {"ok", "not here"}
    # Beside other tests a sampler may cost more than by itself.
    assert done.returncode == int("off" in states.values())
    assert states["eval gpu"] == states["eval gpu_health"] == states["sampler: resident memory"] == "ok"
    assert states["nvmlInit"] == "ok"


def test_where_there_is_no_gpu(tmp_path: Path) -> None:
    words = [str(ROOT / "tests/hardware/run.sh"), str(tmp_path)]
    environ = {name: value for name, value in os.environ.items() if name != "LD_LIBRARY_PATH"}
    done = subprocess.run(words, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2 and "not here" in done.stdout, done
    assert "nvml" in done.stdout.lower() and "Traceback" not in done.stderr


def measured(share: float, tensor: float, name: str = "product", clock: float = 1500.0) -> list[checks.Check]:
    """Return what is said of a load of 4 s on 100 multiprocessors whose tensor pipe was so busy."""
    span = np.full(40, 0.1, np.float32)
    chunk: dict[str, Any] = {key: np.full(40, np.nan, np.float32) for key in checks.COLUMNS}
    chunk |= {"span": span, "end": (np.cumsum(span.astype(float)) + 1000.0) * 1e9}
    chunk |= {key: np.zeros(40, np.float32) for key in ("fp64", "fp32", "fp16", "dram")}
    for key, value in (("tensor", tensor), ("engine", 1.0), ("sm", 1.0), ("clock_sm", clock)):
        chunk[key] = np.full(40, value, np.float32)
    flop = share * 4096 * 100 * clock * 1e6 * 4.0
    segment = {"what": "product", "begin": 1000.0, "end": 1004.0, "flop": flop, "bytes": 0.0}
    load = {"sms": 100, "capability": [9, 0], "segments": [segment]}
    return checks.of_load(name, load, chunk, Peaks(), 3.35e12)


@pytest.mark.parametrize(
    ("share", "tensor", "state"),
    [(0.7, 0.7, "ok"), (0.7, 0.705, "ok"), (0.7, 0.72, "off"), (0.7, 0.4, "off"), (0.7, 0.0, "off")],
)
def test_a_score_that_is_more_than_a_point_from_the_rate_is_off(share: float, tensor: float, state: str) -> None:
    (one,) = measured(share, tensor)
    assert one.state == state, one


def test_without_counters_there_is_nothing_to_hold_against() -> None:
    assert checks.near("x", float("nan"), 0.5, 1.0).state == "not here"
    assert checks.at_most("x", 2.0, 1.0, "s").state == "off"
