"""GPUs through nvidia-ml-py against the fake NVML: each fault is named, and a healthy node passes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.simulators.nvml.build import build

PROTOCOL = "name: gpus\nevals:\n- {type: gpu, count: 4, max_temp: 80, max_used_memory: 0.2}\n- type: gpu_health\n"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("nvml")).parent


def vet(library: Path | None, where: Path, script: str, **environ: str) -> tuple[int, dict[str, Any]]:
    (where / "script").write_text(script)
    (where / "p.yaml").write_text(PROTOCOL)
    own = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "CUDA"))}
    own |= {"PIOLET_FAKE_NVML": str(where / "script"), "HOME": str(where), "XDG_CACHE_HOME": str(where), **environ}
    if library is not None:
        own["LD_LIBRARY_PATH"] = str(library)
    command = [sys.executable, "-m", "piolet.cli.main", "vet", "run", "p.yaml", "--report", "r.json"]
    status = subprocess.run(command, cwd=where, env=own, timeout=60, check=False, capture_output=True).returncode
    value = json.loads((where / "r.json").read_text())
    return status, {row["kind"]: row for row in value["records"]}


def test_a_healthy_node_passes(library: Path, tmp_path: Path) -> None:
    status, rows = vet(library, tmp_path, "gpus 4\n")
    assert status == 0, rows
    assert rows["gpu"]["value"] == 34
    assert len(rows["gpu"]["details"]["gpus"]) == 4


def test_without_a_driver_nothing_passes(tmp_path: Path) -> None:
    status, rows = vet(None, tmp_path, "gpus 4\n")
    assert status == 3
    assert {row["outcome"] for row in rows.values()} == {"inconclusive"}
    assert "NVML cannot be used" in rows["gpu"]["reason"]


@pytest.mark.parametrize(
    ("fault", "kind", "reason"),
    [
        ("temperature 91", "gpu", "GPU 3 is at 91 degC, 80 are allowed"),
        ("memory_used 30000000000", "gpu", "35.1% of the memory of GPU 3 is used"),
        ("process 4242 1000000", "gpu", "GPU 3 has 1 other processes (pid 4242)"),
        ("ecc_uncorrected_volatile 2", "gpu_health", "GPU 3: 2 uncorrected ECC errors, 0 are allowed"),
        ("ecc_corrected_volatile 2000", "gpu_health", "GPU 3: 2000 corrected ECC errors, 1000 are allowed"),
        ("rows_failed 1", "gpu_health", "GPU 3: a row could not be remapped"),
        ("rows_pending 1", "gpu_health", "GPU 3: a row waits to be remapped"),
        ("rows_uncorrected 1", "gpu_health", "GPU 3: 1 rows are remapped for uncorrected errors"),
        ("retired_pending 1", "gpu_health", "GPU 3: a page waits to be retired"),
        ("throttle 0x40", "gpu_health", "GPU 3: its clocks are lowered: hardware thermal slowdown"),
        ("throttle 0x8", "gpu_health", "hardware slowdown"),
        ("throttle 0x80", "gpu_health", "power brake"),
        ("pcie_width 8", "gpu_health", "GPU 3: PCIe runs with 8 of 16 lanes"),
        ("links_down 0x6", "gpu_health", "GPU 3: NVLink 1, 2 is not active"),
        ("fail nvmlDeviceGetTotalEccErrors 15", "gpu_health", "nvmlDeviceGetTotalEccErrors: GPU is lost"),
        ("fail nvmlDeviceGetHandleByIndex_v2 15", "gpu", "GPU 3 does not answer"),
    ],
)
def test_every_fault_is_named(library: Path, tmp_path: Path, fault: str, kind: str, reason: str) -> None:
    status, rows = vet(library, tmp_path, f"gpus 3\ngpu\n{fault}\n")
    assert status == 3
    assert rows[kind]["outcome"] == "fail"
    assert reason in rows[kind]["reason"]


@pytest.mark.parametrize(
    "harmless",
    [
        "throttle 0x5",  # idle, power cap
        "pcie_gen 1",  # saving power
        "ecc_mode 0",
        "links 0",
        "fail nvmlDeviceGetRemappedRows 3",
        "fail nvmlDeviceGetCurrentClocksEventReasons 13",
        "fail nvmlDeviceGetMemoryInfo_v2 13",
    ],
)
def test_what_is_no_fault_passes(library: Path, tmp_path: Path, harmless: str) -> None:
    status, rows = vet(library, tmp_path, f"gpus 3\ngpu\n{harmless}\n")
    assert status == 0, rows


def test_a_missing_gpu(library: Path, tmp_path: Path) -> None:
    status, rows = vet(library, tmp_path, "gpus 3\n")
    assert status == 3
    assert rows["gpu"]["reason"] == "there are 3 GPUs, not 4"


def test_only_the_steps_gpus_are_looked_at(library: Path, tmp_path: Path) -> None:
    script = "gpus 3\ngpu\necc_uncorrected_volatile 5\n"
    _, rows = vet(library, tmp_path, script, CUDA_VISIBLE_DEVICES="0,1")
    assert rows["gpu_health"]["outcome"] == "pass"
    _, rows = vet(library, tmp_path, script, CUDA_VISIBLE_DEVICES="GPU-00000003-0000-0000-0000-000000000000")
    assert rows["gpu_health"]["outcome"] == "fail"
    _, rows = vet(library, tmp_path, script, CUDA_VISIBLE_DEVICES="GPU-00000003")  # CUDA takes as much as is unique
    assert "uncorrected ECC errors" in rows["gpu_health"]["reason"]
    _, rows = vet(library, tmp_path, script, CUDA_VISIBLE_DEVICES="MIG-00000003-0001-0000-0000-000000000000")
    assert {row["outcome"] for row in rows.values()} == {"inconclusive"}
    assert "parts of GPUs (MIG)" in rows["gpu_health"]["reason"]
    _, rows = vet(library, tmp_path, script, CUDA_VISIBLE_DEVICES="7")
    assert "NVML shows 0 of them" in rows["gpu_health"]["reason"]


def test_a_hung_driver_hangs_nobody(library: Path, tmp_path: Path) -> None:
    status, rows = vet(library, tmp_path, "gpus 3\ngpu\nhang nvmlDeviceGetTemperature\n")
    assert status == 3
    assert rows["gpu"]["reason"] == "it did not answer within 5 s"
    assert rows["gpu_health"]["outcome"] == "pass"


def test_a_script_with_a_mistake_is_no_healthy_node(library: Path, tmp_path: Path) -> None:
    status, rows = vet(library, tmp_path, "gpus 4\ntemprature 90\n")
    assert status == 3
    assert rows["gpu"]["outcome"] == "inconclusive"
