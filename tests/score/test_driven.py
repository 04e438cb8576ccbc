"""GPUs that do what a program says: what NVML and GPM tell of them is what the program did between two samples."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from tests.score.simulation import ROOT, environment

# Samples at the given seconds, before each of which the file says what the program did until then.
_SAMPLES = """
import json, sys
from pathlib import Path
from piolet.api import Target
from piolet.samples.choose import choose
from tests.score.simulation import ScriptedClock

clock = ScriptedClock()
clock.load("gpm")
clock.set(10 * 10**9)
collector = choose(Target(period=1.0), "gpm")[0][0]
found = []
for second, words in json.loads(sys.argv[2]):
    clock.set(round(second * 1e9))
    if words is not None:
        Path(sys.argv[1]).write_bytes(bytes.fromhex(words))
    found += [dict(zip(collector.quantities, reading.values)) for reading in collector.read(round(second * 1e9))]
print(json.dumps([{name: one[name] for name in ("engine", "sm", "tensor", "energy", "clock_sm")} for one in found]))
"""


def told(turn: int, now: int, since: float, *seconds: float, again: int | None = None) -> str:
    return struct.pack("=QQd3dQ", turn, now, since, *seconds, turn if again is None else again).hex()


def test_samples_are_what_the_program_did(libraries: Path, tmp_path: Path) -> None:
    file, script = tmp_path / "gpu", tmp_path / "script"
    script.write_text(f"gpu\ndriven {file}\n")
    moments = [
        (10.0, None),  # nobody has it
        (12.0, None),
        (14.0, told(1, 1, 13.0, 0.0, 0.0, 0.0)),  # it computes since second 13
        (18.0, told(4, 2, 17.0, 1.0, 3.0, 0.0)),  # 2 s of computing more, 1 s nothing, and it polls since second 17
        (20.0, told(5, 1, 0.0, 9.0, 9.0, 9.0, again=6)),  # it is being written: as before, so that it is idle
    ]
    done = subprocess.run(
        [sys.executable, "-c", _SAMPLES, str(file), json.dumps(moments)], env=environment(libraries, script), cwd=ROOT,
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    nothing, began, mixed, torn = json.loads(done.stdout)
    assert (nothing["engine"], nothing["clock_sm"], torn["engine"]) == (0, 345, 0)
    assert began["engine"] == pytest.approx(0.5) and began["sm"] == pytest.approx(0.99 / 2)
    assert mixed["engine"] == pytest.approx(3 / 4) and mixed["tensor"] == pytest.approx(0.9 * 2 / 4)
    assert mixed["sm"] == pytest.approx((2 * 0.99 + 8 / 132) / 4)
    # Whole seconds of what each draws: ready 118 W, computing 660 W, polling 165 W.
    assert mixed["energy"] - began["energy"] == pytest.approx(118 + 2 * 660 + 165, rel=0.01)
