"""What is known of a device, and by which names it is found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from piolet.samples.dataset import Dataset

from tests.score.test_collectors import CHOICE, run


def test_devices_tell_what_they_can_at_most(simulate: Callable[..., Dataset]) -> None:
    """Their clocks, and with NVML the PCIe link as it is in this machine."""
    script = "gpu\npcie_gen_max 4\nclock_sm_max 1755\nload idle 9\n"
    for collector, pcie in (("gpm", 16 * 1.969e9), ("dcgm", 0.0)):
        (device,) = simulate(script, 2, 0.1, collector).nodes[0].facts.devices
        assert (device["clock_sm_max"], device["clock_memory_max"], device["pcie"]) == (1755, 2619, pytest.approx(pcie))


MIXED = "gpu\nminor 4\ngpu\nminor 0\n"


@pytest.mark.parametrize("collector", ["dcgm", "gpm", "nvml"])
def test_a_device_file_is_no_index(libraries: Path, tmp_path: Path, collector: str) -> None:
    """/dev/nvidia0 is NVML's GPU 1 here, as on some boards (jobstats issue 34)."""
    for gpus, found in (("/dev/nvidia0", "1"), ("/dev/nvidia4", "0"), ("0", "0"), ("1", "1")):
        got = run(libraries, tmp_path, MIXED, CHOICE.format(gpus=f"('{gpus}',)", wanted=collector))
        assert got.startswith(f"['{collector}', 'host'] ['GPU-0000000{found}']"), got
    got = run(libraries, tmp_path, MIXED, CHOICE.format(gpus="('/dev/nvidia1',)", wanted=collector))
    assert got.startswith("['host']") and "/dev/nvidia1" in got, got
