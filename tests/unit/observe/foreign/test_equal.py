"""Figure 5 of issue 19: what is read equals what numpy makes of the same files, within 0.1 point."""

from __future__ import annotations

import csv
import gzip
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit.observe.foreign import recorded
from tests.unit.observe.foreign.recorded import mean, stepped

POINT = 0.001  # 0.1 % of what the figure can be at most


def scraped(directory: Path, name: str, label: str, value: str) -> float:
    """Return the plain mean of a metric with a label in all scrapes."""
    pattern = re.compile(rf'^{name}\{{[^}}]*{label}="{value}"[^}}]*\}} (\S+)$', re.MULTILINE)
    found = [float(one) for path in directory.iterdir() for one in pattern.findall(path.read_text())]
    assert found
    return float(np.mean(found))


def test_dcgm(tmp_path: Path) -> None:
    """Eight GPUs, 20 minutes: shares, powers and bytes, by their own labels."""
    source = tmp_path / "scrapes"
    source.mkdir()
    recorded.dcgm(source)
    step = stepped([source], tmp_path / "out")
    assert step.name == "4711.batch" and step.nodes == ("nid000000", "nid000001")
    assert step.end - step.start == 120 * 10 * 10**9 and step.meta["interval"] == 10
    gpu = step.table("gpu")
    for node in range(2):
        for index in range(4):
            uuid = f"GPU-{node}-{index}"
            where = {"uuid": uuid, "node": f"nid{node:06}", "gpu": index}
            for metric, quantity, factor, most in (
                ("DCGM_FI_DEV_GPU_UTIL", "utilisation", 0.01, 1),
                ("DCGM_FI_PROF_SM_ACTIVE", "sm", 1, 1),
                ("DCGM_FI_DEV_POWER_USAGE", "power", 1, 700),
                ("DCGM_FI_DEV_FB_USED", "memory_used", 2**20, 96 * 2**30),
            ):
                assert mean(gpu, quantity, **where) == pytest.approx(
                    scraped(source, metric, "UUID", uuid) * factor, abs=POINT * most
                )
    assert step.meta["devices"]["nid000001"][3] == {"uuid": "GPU-1-3", "name": "NVIDIA GH200 120GB"}
    assert len(step.quality) == 0


def test_omnistat(tmp_path: Path) -> None:
    """A node's power, its processors' and its accelerators'."""
    source = tmp_path / "scrapes"
    source.mkdir()
    recorded.omnistat(source)
    step = stepped([source], tmp_path / "out", node="x1000c0s0b0n0")
    assert step.name == "99.batch" and step.meta["user"] == "alice" and step.nodes == ("x1000c0s0b0n0",)
    host, gpu = step.table("host"), step.table("gpu")
    whole = scraped(source, "omnistat_vendor_power_watts", "vendor", "cray")
    assert mean(host, "node_power") == pytest.approx(whole, abs=POINT * 2800)
    of_cpu = scraped(source, "omnistat_vendor_cpu_power_watts", "vendor", "cray")
    assert mean(host, "cpu_power") == pytest.approx(of_cpu, abs=POINT * 280)
    for one in range(4):
        got = mean(gpu, "power", uuid=f"accel{one}")
        assert got == pytest.approx(scraped(source, "omnistat_vendor_accel_power_watts", "accel", str(one)), abs=0.7)
    assert "node_power" not in recorded.reasons(step)  # the energy counter agrees


def test_pm_counters(tmp_path: Path) -> None:
    """The counters of two nodes, a line for each reading, some of them twice."""
    truth = {}
    for node in range(2):
        place = tmp_path / "run" / f"x1000c0s0b0n{node}"
        place.mkdir(parents=True)
        for number, name in enumerate(("power", "cpu_power", "accel0_power", "accel1_power")):
            values = np.round(recorded.load(20 * node + number, 200, 80, 700))
            truth[place.name, name] = values.mean()
            stamps = [(recorded.START * 1000 + 100 * tick) * 1000 for tick in range(200)]
            lines = [f"{value:.0f} W {stamp} us\n" for value, stamp in zip(values, stamps, strict=True)]
            (place / name).write_text("".join(lines + lines[50:60]))
    step = stepped([tmp_path / "run" / f"x1000c0s0b0n{node}" for node in range(2)], tmp_path / "out", job="5", step="0")
    assert step.nodes == ("x1000c0s0b0n0", "x1000c0s0b0n1") and step.meta["interval"] == pytest.approx(0.1)
    for (host, name), expected in truth.items():
        if name.startswith("accel"):
            got = mean(step.table("gpu"), "power", node=host, uuid=name.partition("_")[0])
        else:
            got = mean(step.table("host"), "node_power" if name == "power" else name, node=host)
        assert got == pytest.approx(expected, abs=POINT * 700)


def test_clustercockpit(tmp_path: Path) -> None:
    """Means of each accelerator and node, nulls left out, as `statistics` of the archive has them."""
    recorded.clustercockpit(tmp_path / "archive")
    step = stepped([tmp_path / "archive"], tmp_path / "out")
    assert step.name == "398759.batch" and step.nodes == ("a0121", "a0122")
    expected = {"cluster": "alex", "user": "alice", "account": "proj", "state": "COMPLETED", "name": "train"}
    assert {name: step.meta[name] for name in expected} == expected
    assert (step.start, step.end) == (recorded.START * 10**9, (recorded.START + 1800) * 10**9)
    (packed,) = tmp_path.rglob("data.json.gz")
    data = json.loads(gzip.decompress(packed.read_bytes()))
    gpu, host = step.table("gpu"), step.table("host")
    scale = {"acc_utilization": ("utilisation", 0.01, 1), "acc_power": ("power", 1, 300)}
    for name, (quantity, factor, most) in (scale | {"acc_mem_used": ("memory_used", 1e9, 4e10)}).items():
        for one in data[name]["accelerator"]["series"]:
            got = mean(gpu, quantity, node=one["hostname"], uuid=one["id"])
            assert got == pytest.approx(np.nanmean(np.array(one["data"], float)) * factor, abs=POINT * most)
            assert got == pytest.approx(one["statistics"]["avg"] * factor, abs=0.05 * most)
    for one in data["mem_used"]["node"]["series"]:
        assert mean(host, "memory", node=one["hostname"]) == pytest.approx(np.mean(one["data"]) * 1e9, abs=POINT * 2e11)
    for node in step.nodes:
        sockets = [one["data"] for one in data["cpu_power"]["socket"]["series"] if one["hostname"] == node]
        assert mean(host, "cpu_power", node=node) == pytest.approx(np.sum(sockets, axis=0).mean(), abs=0.5)
    for one in data["ib_recv"]["node"]["series"]:
        got = mean(step.table("net"), "rx", node=one["hostname"], kind="infiniband")
        assert got == pytest.approx(np.mean(one["data"]) * 1e6, abs=POINT * 5e9)
    for one in data["filesystems"][0]["read_bw"]["node"]["series"]:
        got = mean(step.table("io"), "read", node=one["hostname"], mount="/scratch", kind="lustre", scope="node")
        assert got == pytest.approx(np.mean(one["data"]) * 1e6, abs=POINT * 9e8)
    said = recorded.reasons(step)
    assert said["flops_any"] == "the layout has no column for it" and said["acc_utilization"] == "null"


@pytest.mark.parametrize("form", ["csv", "json"])
def test_gssr(tmp_path: Path, form: str) -> None:
    """Both formats: a row per second and GPU, and lists of values per metric."""
    values: dict[int, dict[str, Any]] = {
        gpu: {"sm": recorded.load(gpu, 300, 0, 1), "power": recorded.load(9 + gpu, 300, 80, 690)} for gpu in range(4)
    }
    source = tmp_path / ("run.json" if form == "json" else "alps_77/step_3/proc_0.csv")
    source.parent.mkdir(parents=True, exist_ok=True)
    if form == "json":
        about = {"job_id": 77, "step_id": 3, "hostname": "nid001", "sampling_time": 1000, "start_time": recorded.START}
        told = {str(gpu): {"sm_active": list(v["sm"]), "power_usage": list(v["power"])} for gpu, v in values.items()}
        source.write_text(json.dumps({"metadata": about, "data": told}))
    else:
        fields = ("DCGM_FI_PROF_SM_ACTIVE", "DCGM_FI_DEV_POWER_USAGE")
        with open(source, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["timestamp", "gpuId", *(f"{f}_{kind}" for f in fields for kind in ("min", "avg", "max"))])
            for second in range(300):
                for gpu, own in values.items():
                    both = [f"{own[name][second]:.2f}" for name in ("sm", "power")]
                    writer.writerow([second + 1, gpu, *(text for text in both for _ in range(3))])
        facts = '{\n    "jobid": "77",\n    "date": "2026-11-18T10:00:00+0000",\n    "arguments": "\'-c\' "\n}\n'
        (source.parent / "proc_0.meta.txt").write_text(facts)
    step = stepped([source if form == "json" else tmp_path / "alps_77"], tmp_path / "out")
    assert step.name == "77.3" and len(step.table("gpu")) == 1200
    for gpu, own in values.items():
        assert mean(step.table("gpu"), "sm", gpu=gpu) == pytest.approx(own["sm"].mean(), abs=POINT)
        assert mean(step.table("gpu"), "power", gpu=gpu) == pytest.approx(own["power"].mean(), abs=POINT * 700)
    assert step.table("gpu")["utilisation"].null_count == 1200
