"""Parts of GPUs (MIG) are vetted as what they are: memory and processes of the part, the hardware of the whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from piolet.vet import gpucount
from piolet.vet.runner.plan import Plan, Task
from piolet.vet.runner.records import Record

from tests.simulators.nvml.build import build
from tests.vet.test_nvml import vet

FIRST, SECOND = (f"MIG-0000000{number}-0000-0000-0000-000000000000" for number in (1, 2))
PART = "instance\nuuid {}\nmemory_total 10737418240\n"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("nvml")).parent


def parted(library: Path, where: Path, first: str = "", whole: str = "", **environ: str) -> dict[str, Any]:
    """Vet a node with a whole GPU and one of two parts, of whose first part, and of which, something is said."""
    script = f"gpu\ngpu\nmig 1\n{whole}{PART.format(FIRST)}{first}{PART.format(SECOND)}"
    protocol = "name: gpus\nevals:\n- {type: gpu, count: 1, max_temp: 80, max_used_memory: 0.2}\n- type: gpu_health\n"
    return vet(library, where, script, protocol, **{"CUDA_VISIBLE_DEVICES": FIRST, **environ})[1]


def test_a_healthy_part_passes(library: Path, tmp_path: Path) -> None:
    rows = parted(library, tmp_path)
    assert {row["outcome"] for row in rows.values()} == {"pass"}, rows
    (device,) = rows["gpu"]["details"]["gpus"]
    assert device["uuid"] == FIRST and device["index"] == 1
    assert "gpus_there" not in rows["gpu"]["details"]  # Slurm counts parts


@pytest.mark.parametrize(
    ("fault", "kind", "reason"),
    [
        ("memory_used 3000000000\n", "gpu", "of the memory of part 1 of GPU 1 is used"),
        ("process 4242 1000000\n", "gpu", "part 1 of GPU 1 has 1 other processes"),
    ],
)
def test_what_a_part_has_is_its_own(library: Path, tmp_path: Path, fault: str, kind: str, reason: str) -> None:
    rows = parted(library, tmp_path, fault)
    assert rows[kind]["outcome"] == "fail" and reason in rows[kind]["reason"], rows
    # It is nothing to the other part.
    rows = parted(library, tmp_path, fault, CUDA_VISIBLE_DEVICES=SECOND)
    assert {row["outcome"] for row in rows.values()} == {"pass"}, rows


@pytest.mark.parametrize(
    ("fault", "kind", "reason"),
    [
        ("temperature 91\n", "gpu", "part 1 of GPU 1 is at 91 degC"),
        ("rows_pending 1\n", "gpu_health", "GPU 1: a memory row waits to be remapped"),
        ("pcie_width 8\n", "gpu_health", "GPU 1: PCIe runs with 8 of 16 lanes"),
    ],
)
def test_the_hardware_is_the_whole_gpus(library: Path, tmp_path: Path, fault: str, kind: str, reason: str) -> None:
    rows = parted(library, tmp_path, whole=fault)
    assert rows[kind]["outcome"] == "fail" and reason in rows[kind]["reason"], rows


def test_the_links_of_a_divided_gpu_are_not_used(library: Path, tmp_path: Path) -> None:
    assert parted(library, tmp_path, whole="links_down 0xff\n")["gpu_health"]["outcome"] == "pass"


def test_two_parts_of_one_gpu_are_two(library: Path, tmp_path: Path) -> None:
    rows = parted(library, tmp_path, CUDA_VISIBLE_DEVICES=f"{FIRST},{SECOND}")
    assert rows["gpu"]["reason"] == "the step has 2 GPUs, not 1"
    assert list(rows["gpu_health"]["details"]["checked"]) == ["GPU 1"]


def test_slurms_numbers_say_nothing_of_parts(library: Path, tmp_path: Path) -> None:
    """Where the step has a UUID as well, that counts."""
    rows = parted(library, tmp_path, SLURM_STEP_GPUS="5")
    assert {row["outcome"] for row in rows.values()} == {"pass"}, rows
    rows = parted(library, tmp_path, SLURM_STEP_GPUS="1", CUDA_VISIBLE_DEVICES="1")
    assert {row["outcome"] for row in rows.values()} == {"inconclusive"}
    assert "numbers do not say which parts" in rows["gpu"]["reason"]
    # It is Slurm's configuration and no missing driver: the node is not to blame, however many GPUs Slurm has of it.
    for kind in ("gpu", "gpu_health"):
        plan = Plan("p", (Task(kind, kind, f"m:{kind}"),))
        (judged,) = gpucount.against(plan, [Record(**rows[kind])], {rows[kind]["node"]: 2})
        assert judged.whose == "" and "Slurm has" not in judged.reason


def test_a_part_that_is_not_there(library: Path, tmp_path: Path) -> None:
    rows = parted(library, tmp_path, CUDA_VISIBLE_DEVICES="MIG-0000000a-0000-0000-0000-000000000000")
    assert {(row["outcome"], row["whose"]) for row in rows.values()} == {("fail", "")}
    assert "NVML does not show it" in rows["gpu"]["reason"]
