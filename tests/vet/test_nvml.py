"""GPUs through nvidia-ml-py against the fake NVML: each fault is named, and a healthy node passes."""

from __future__ import annotations

import json
import os
import stat
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


def vet(
    library: Path | None, where: Path, script: str, protocol: str = PROTOCOL, **environ: str
) -> tuple[int, dict[str, Any]]:
    (where / "script").write_text(script)
    (where / "p.yaml").write_text(protocol)
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


@pytest.mark.parametrize(
    ("conf", "number", "index"),
    [
        ("File=DEV/a,DEV/b", "0", 1),
        ("File=DEV/a,DEV/b", "1", 0),
        ("AutoDetect=nvml", "0", 0),
        ("AutoDetect=nvml", "1", 1),
    ],
)
def test_slurms_number_is_what_gres_conf_says(
    library: Path, tmp_path: Path, conf: str, number: str, index: int
) -> None:
    """Files by the driver's minor numbers, which need not be NVML's indices; GPU 0, whose file is nvidia4, is hot."""
    for name, minor in (("a", 0), ("b", 4)):
        try:
            os.mknod(tmp_path / name, stat.S_IFCHR | 0o600, os.makedev(195, minor))
        except PermissionError:
            pytest.skip("device files are made by root")
    (tmp_path / "gres.conf").write_text(f"Name=gpu {conf}\n".replace("DEV", str(tmp_path)))
    of_the_step = {"SLURM_CONF": str(tmp_path / "slurm.conf"), "SLURM_STEP_GPUS": number}
    protocol = PROTOCOL.replace("count: 4", "count: 1")
    _, rows = vet(library, tmp_path, "gpu\nminor 4\ntemperature 91\ngpu\nminor 0\n", protocol, **of_the_step)
    (device,) = rows["gpu"]["details"]["gpus"]
    assert device["index"] == index
    assert rows["gpu"]["outcome"] == ("fail" if index == 0 else "pass")
    assert list(rows["gpu_health"]["details"]["checked"]) == [f"GPU {index}"]


def test_a_device_file_that_nvml_does_not_know(library: Path, tmp_path: Path) -> None:
    _, rows = vet(library, tmp_path, "gpus 2\n", PROTOCOL, CUDA_VISIBLE_DEVICES="/dev/nvidia7")
    assert rows["gpu"]["outcome"] == "fail" and "NVML shows 0 of them" in rows["gpu"]["reason"]


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
        (
            "ecc_uncorrected_volatile 2",
            "gpu_health",
            "GPU 3: uncorrected ECC errors since the driver was loaded: 2",
        ),
        ("rows_failed 1", "gpu_health", "GPU 3: a memory row could not be remapped"),
        ("rows_pending 1", "gpu_health", "GPU 3: a memory row waits to be remapped"),
        ("retired_pending 1", "gpu_health", "GPU 3: a memory page waits to be retired"),
        ("throttle 0x40", "gpu_health", "GPU 3: its clocks are lowered: hardware thermal slowdown"),
        ("throttle 0x8", "gpu_health", "hardware slowdown"),
        ("throttle 0x80", "gpu_health", "power brake"),
        ("pcie_width 8", "gpu_health", "GPU 3: PCIe runs with 8 of 16 lanes"),
        ("links_down 0x6", "gpu_health", "GPU 3: 16 NVLinks are active, its NVLink fabric has 18; not active: 1, 2"),
        (
            "memory_temperature 105",
            "gpu_health",
            "GPU 3: the GPU's memory is above its limit: 105 degC, 95 are allowed",
        ),
        ("power_limit 200000", "gpu_health", "GPU 3: its power limit is far below the board's default: 200 of 700 W"),
        ("fabric_state 2", "gpu_health", "GPU 3: the GPU is not registered with its NVLink fabric (in progress)"),
        ("fabric_state 1", "gpu_health", "(not started)"),
        (
            "fabric_status 999",
            "gpu_health",
            "GPU 3: the GPU's registration with its NVLink fabric failed (Unknown Error)",
        ),
        ("fabric_health 0x1a9", "gpu_health", "GPU 3: the NVLink fabric is not healthy (degraded bandwidth)"),
        ("fabric_summary 2", "gpu_health", "GPU 3: the NVLink fabric is not healthy"),
        ("recovery_action 1", "gpu_health", "GPU 3: the GPU has to be reset"),
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
        "fabric_state 0",  # no fabric: a board without NVSwitch, or an older driver
        "fail nvmlDeviceGetGpuFabricInfoV 25",
        "memory_temperature 0",  # no sensor
        "ecc_corrected_volatile 1001\nfail nvmlDeviceGetTotalEccErrors 3",
        "clock_sm 210",  # idle, and says so
        "fail nvmlDeviceGetRemappedRows 3",
        "fail nvmlDeviceGetCurrentClocksEventReasons 13",
        "fail nvmlDeviceGetMemoryInfo_v2 13",
    ],
)
def test_what_is_no_fault_passes(library: Path, tmp_path: Path, harmless: str) -> None:
    status, rows = vet(library, tmp_path, f"gpus 3\ngpu\n{harmless}\n")
    assert status == 0, rows


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("rows_uncorrected 1", "GPU 3: memory rows are remapped for uncorrected errors: 1"),
        ("ecc_corrected_volatile 1000000000", "GPU 3: corrected ECC errors at a high rate: 1000000000, "),
        ("power_limit 500000", "GPU 3: its power limit is below the board's default: 500 of 700 W"),
        ("clock_sm 210\nthrottle 0x2", "GPU 3: its clocks are set low: 210 of 1980 MHz"),
        ("fabric_summary 3", "GPU 3: the NVLink fabric has less than its whole capacity"),
    ],
)
def test_what_is_worth_a_look_passes_with_a_warning(library: Path, tmp_path: Path, what: str, reason: str) -> None:
    status, rows = vet(library, tmp_path, f"gpus 3\ngpu\n{what}\n")
    assert (status, rows["gpu_health"]["outcome"]) == (0, "pass")
    assert rows["gpu_health"]["reason"].startswith(reason)
    judged = rows["gpu_health"]["details"]["judged_by"]
    assert len(judged) == 1 and judged[0]["source"] and judged[0]["date"] and judged[0]["action"]


def test_a_few_corrected_errors_are_nothing(library: Path, tmp_path: Path) -> None:
    """Of 1,001 errors nothing is known without the time in which they came: here that of a whole year."""
    faults = "ecc_corrected_volatile 1001"
    uptime = {"kernel_log": ["[    1.0] NVRM: loading NVIDIA UNIX Open Kernel Module"]}
    assert health(library, tmp_path, faults, uptime, now=365 * 86400.0) == ("pass", "")
    assert health(library, tmp_path, faults, uptime, now=2 * 3600.0)[1].startswith("GPU 0: corrected ECC errors")


def test_clocks_that_are_low_without_a_reason(library: Path, tmp_path: Path) -> None:
    status, rows = vet(library, tmp_path, "gpus 3\ngpu\nclock_sm 210\nthrottle 0\n")
    assert (status, rows["gpu_health"]["outcome"]) == (3, "fail")
    assert "GPU 3: its clocks are low, and no reason is given: 210 of 1980 MHz" in rows["gpu_health"]["reason"]


BY_DESIGN = 0x30C30  # links 4, 5, 10, 11, 16 and 17


@pytest.mark.parametrize(
    ("board", "links", "down", "reason"),
    [
        ("NVIDIA H100 NVL", 18, BY_DESIGN, ""),
        ("NVIDIA H100 NVL", 18, BY_DESIGN | 1, "11 NVLinks are active, its board has 12; not active: 0, 4, "),
        ("NVIDIA H100 NVL", 18, 0x3FFFF, ""),
        ("NVIDIA A100 80GB PCIe", 12, 0xFFF, ""),
        ("NVIDIA A100-PCIE-40GB", 12, 0xFF0, ""),
        ("NVIDIA A100-SXM4-80GB", 12, 0x800, "11 NVLinks are active, its board has 12; not active: 11"),
        ("NVIDIA GH200 120GB", 18, 0x3FFFF, ""),
        ("NVIDIA GH200 120GB", 18, 0, ""),
    ],
)
def test_a_board_has_the_links_that_it_has(
    library: Path, tmp_path: Path, board: str, links: int, down: int, reason: str
) -> None:
    gpu = f"gpu\nname {board}\nlinks {links}\nlinks_down {down}\nfabric_state 0\n"
    _, rows = vet(library, tmp_path, gpu * 4)
    assert rows["gpu_health"]["outcome"] == ("fail" if reason else "pass"), rows["gpu_health"]
    assert reason in rows["gpu_health"]["reason"]


def test_links_of_equal_gpus(library: Path, tmp_path: Path) -> None:
    """Nothing is known of the board: what the others have is what one has to have."""
    gpu = "gpu\nname NVIDIA Future\nlinks 18\nfabric_state 0\n"
    _, rows = vet(library, tmp_path, gpu * 3 + gpu + "links_down 0x4\n")
    assert (
        rows["gpu_health"]["reason"] == "GPU 3: 17 NVLinks are active, equal GPUs of this node have 18; not active: 2"
    )


def test_no_answer_to_any_question_is_no_pass(library: Path, tmp_path: Path) -> None:
    status, rows = vet(library, tmp_path, "gpu\nfail * 3\n" * 4)
    assert status == 3
    assert {row["outcome"] for row in rows.values()} == {"inconclusive"}
    assert rows["gpu_health"]["reason"].startswith("nothing was checked: GPU 0, GPU 1, GPU 2, GPU 3")
    assert rows["gpu"]["reason"].startswith("nothing was checked: GPU 0, GPU 1, GPU 2, GPU 3")
    _, rows = vet(library, tmp_path, "gpus 3\ngpu\nfail * 3\n")
    assert {row["outcome"] for row in rows.values()} == {"inconclusive"}
    assert rows["gpu"]["reason"].startswith("nothing was checked: GPU 3")


# -- the kernel's log, for GPUs at the PCI addresses of the simulator (GPU 0 is at 0000:10:00)

_CHECK = """
import json, sys, time
clock = time.clock_gettime
facts, now = json.loads(sys.argv[1])
time.clock_gettime = lambda which: now
from piolet.api import Context
from piolet.vet.evals.gpu_health import GpuHealth
verdict = GpuHealth().check(Context("n1", time.monotonic() + 10, facts=facts))
print(json.dumps([verdict.outcome, verdict.reason]))
"""
DAY = 86400.0


def health(library: Path, where: Path, faults: str, facts: dict[str, Any], now: float = 12 * DAY) -> tuple[str, str]:
    """Return what gpu_health says of one GPU, `now` seconds after the boot."""
    (where / "script").write_text(f"gpu\n{faults}\n")
    own = {**os.environ, "PIOLET_FAKE_NVML": str(where / "script"), "LD_LIBRARY_PATH": str(library)}
    command = [sys.executable, "-c", _CHECK, json.dumps([facts, now])]
    done = subprocess.run(command, env=own, capture_output=True, text=True, timeout=60, check=True)
    outcome, reason = json.loads(done.stdout)
    return outcome, reason


def xid(code: str, at: float = 11.99 * DAY, device: str = "0000:10:00") -> str:
    return f"[{at:12.6f}] NVRM: Xid (PCI:{device}): {code}"


RELOADED = f"[{11 * DAY:12.6f}] NVRM: loading NVIDIA UNIX Open Kernel Module for x86_64  580.82.07"
RECOVERED = "154, GPU recovery action changed from 0x1 (GPU Reset Required) to 0x0 (None)"
OLD_DRIVER = "fail nvmlDeviceGetFieldValues 3"  # it does not tell which recovery it needs


@pytest.mark.parametrize(
    ("log", "outcome", "reason"),
    [
        ([xid("13, pid=1"), xid("31, x"), xid("43, x"), xid("45, x")], "pass", ""),
        ([xid("145, RLW_REMAP Nonfatal XC1 i0 Link 08 (0x00000004 0x0)")], "pass", ""),
        (
            [xid("145, RLW_CTRL Fatal XC0 i0 Link 08 (0x00000004 0x0)")],
            "fail",
            "XID 145, a fatal NVLink error, 14 min ago",
        ),
        ([xid(RECOVERED)], "pass", ""),
        (
            [xid("154, GPU recovery action changed from 0x0 (None) to 0x2 (Node Reboot Required)")],
            "fail",
            "be rebooted",
        ),
        ([xid("63, Row Remapper")], "pass", "GPU 0: XID 63, a memory row is to be remapped, 14 min ago"),
        ([xid("64, Row Remapper")], "fail", "GPU 0: XID 64, a memory row could not be remapped"),
        ([xid("48, DBE")], "fail", "GPU 0: XID 48, an uncorrectable ECC error"),
        ([xid("94, Contained")], "pass", "GPU 0: XID 94, a contained memory error, 14 min ago"),
        ([xid("95, Uncontained")], "fail", "GPU 0: XID 95, an uncontained memory error"),
        ([xid("79, GPU has fallen off the bus.")], "fail", "GPU 0: XID 79, the GPU has fallen off the bus"),
        ([xid("119, Timeout after 6s of waiting for RPC response from GPU0 GSP!")], "fail", "XID 119"),
        ([xid("777, x")], "pass", "GPU 0: XID 777, not in the table of severities, 14 min ago"),
        ([xid("79, off", device="0000:77:00")], "pass", ""),  # another's GPU
        ([xid("95, x", at=2 * DAY)], "fail", "GPU 0: XID 95, an uncontained memory error, 10 days ago"),
        ([xid("95, x", at=2 * DAY), RELOADED], "pass", ""),
        ([xid("95, x", at=2 * DAY), xid(RECOVERED, at=3 * DAY)], "pass", ""),
        ([xid("95, x", at=2 * DAY), xid(RECOVERED, device="0000:77:00")], "fail", "XID 95"),
        ([RELOADED, xid("95, x")], "fail", "XID 95"),
        ([xid("94, x", at=2 * DAY), xid("777, x", at=2 * DAY)], "pass", ""),  # warnings of long ago
        (["NVRM: Xid (PCI:0000:10:00): 79, without a time"], "fail", "at an unknown time"),
        (
            [f"[{11.99 * DAY}] nvidia-nvswitch0: SXid (PCI:0000:c2:00.0): 20034, Fatal, Link 28 LTSSM Fault Up"],
            "fail",
            "SXid 20034 of the NVSwitch 0000:c2:00, a fatal NVSwitch error, 14 min ago",
        ),
        (
            [f"[{11.99 * DAY}] nvidia-nvswitch2: SXid (PCI:0000:c4:00.0): 19084, Non-fatal, Link 29 AN1 Heartbeat"],
            "pass",
            "SXid 19084 of the NVSwitch 0000:c4:00, an NVSwitch error that is not fatal",
        ),
        ([f"[{11.99 * DAY}] nvidia-nvswitch2: SXid (PCI:0000:c4:00.0): 10002, Severity 5 Engine"], "pass", ""),
    ],
)
def test_what_the_kernel_logged(library: Path, tmp_path: Path, log: list[str], outcome: str, reason: str) -> None:
    found = health(library, tmp_path, OLD_DRIVER, {"kernel_log": log})
    assert found[0] == outcome, found
    assert (reason in found[1]) if reason else found[1] == ""


def test_a_driver_that_asks_for_no_reset_has_had_it(library: Path, tmp_path: Path) -> None:
    """Newer drivers tell which recovery a GPU needs. What happened this minute may not have arrived there."""
    log = {"kernel_log": [xid("95, x", at=11 * DAY + 1)]}
    assert health(library, tmp_path, "recovery_action 0", log)[0] == "pass"
    assert health(library, tmp_path, "recovery_action 1", log)[0] == "fail"
    assert health(library, tmp_path, "", {"kernel_log": [xid("95, x", at=12 * DAY - 1)]})[0] == "fail"
    assert health(library, tmp_path, "", {"kernel_log": [xid("79, x", at=2 * DAY)]})[0] == "fail"


def test_a_missing_gpu(library: Path, tmp_path: Path) -> None:
    status, rows = vet(library, tmp_path, "gpus 3\n")
    assert status == 3
    assert rows["gpu"]["reason"] == "the step has 3 GPUs, not 4"


def test_only_the_steps_gpus_are_looked_at(library: Path, tmp_path: Path) -> None:
    script = "gpus 3\ngpu\necc_uncorrected_volatile 5\n"
    _, rows = vet(library, tmp_path, script, CUDA_VISIBLE_DEVICES="0,1")
    assert rows["gpu_health"]["outcome"] == "pass"
    _, rows = vet(library, tmp_path, script, CUDA_VISIBLE_DEVICES="GPU-00000003-0000-0000-0000-000000000000")
    assert rows["gpu_health"]["outcome"] == "fail"
    _, rows = vet(library, tmp_path, script, CUDA_VISIBLE_DEVICES="GPU-00000003")  # CUDA takes as much as is unique
    assert "uncorrected ECC errors" in rows["gpu_health"]["reason"]
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
