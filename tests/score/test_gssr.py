"""What GSSR recorded, as a data set: nothing that it did not record is claimed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from piolet.base.errors import ScoreError
from piolet.samples.dataset import open_dataset
from piolet.score import foreign
from piolet.score.summary import Summary, summarise


def test_gssr_json(tmp_path: Path) -> None:
    """One file per process."""
    metrics = {"gpu_utilization": [100] * 20, "sm_active": [0.9] * 20, "dram_active": [0.5] * 20}
    metrics |= {"tensor_active": [0.7] * 10 + [2.0**47] * 10, "nvlink_tx_bytes": [1e9] * 20}
    about = {"job_id": 42, "step_id": 1, "hostname": "nid001", "sampling_time": 500, "start_time": 1.7e9, "label": "x"}
    source = tmp_path / "gssr.json"
    source.write_text(json.dumps({"metadata": about, "data": {"0": metrics, "3": metrics}}))
    assert foreign.convert(source, tmp_path / "out", "NVIDIA GH200 120GB") == [tmp_path / "out"]
    got = summarise(open_dataset(tmp_path / "out"))
    assert (got.job, got.step, got.score.gpus) == ("42", "1", 2) and got.seconds == pytest.approx(10)
    # The second half has no pipe at all: its compute is not known, so neither is its score.
    assert got.score.value == pytest.approx(0.7) and got.score.coverage == pytest.approx(0.5) and got.score.is_range
    for text in ("{}", "[1]", '{"metadata": {}, "data": {}}', "\x00"):
        source.write_text(text)
        with pytest.raises(ScoreError, match="is not JSON of GSSR"):
            foreign.convert(source, tmp_path / "bad")
        assert not (tmp_path / "bad").exists()


def test_gssr_csv(tmp_path: Path) -> None:
    """step_N/proc_M.csv, with the job in a file beside it."""
    step = tmp_path / "run" / "step_0"
    step.mkdir(parents=True)
    fields = [
        "DEV_GPU_UTIL",
        "PROF_SM_ACTIVE",
        "PROF_PIPE_TENSOR_ACTIVE",
        "PROF_DRAM_ACTIVE",
        "DEV_TOTAL_ENERGY_CONSUMPTION",
    ]
    values = [100, 0.9, 0.6, 0.3, 500_000]
    head: list[Any] = [
        "timestamp",
        "gpuId",
        *(f"DCGM_FI_{field}_{kind}" for field in fields for kind in ("min", "avg", "max")),
    ]
    for proc in range(2):
        rows: list[list[Any]] = [
            [t, gpu, *(v for value in values for v in (0, value, value))] for t in range(30) for gpu in (0, 1)
        ]
        (step / f"proc_{proc}.csv").write_text("\n".join(",".join(map(str, row)) for row in [head, *rows]) + "\n")
    (step / "proc_0.meta.txt").write_text(json.dumps({"cluster": ["alps"], "jobid": ["7"]}))
    assert foreign.convert(tmp_path / "run", tmp_path / "out") == [tmp_path / "out"]
    got = summarise(open_dataset(tmp_path / "out"))
    assert got.job == "7" and got.score.gpus == 4 and got.score.value == pytest.approx(0.6)
    assert got.energy.low == pytest.approx(4 * 29 * 500)
    (step / "proc_0.csv").write_text("timestamp,gpuId\nx,y\n")
    with pytest.raises(ScoreError, match="is not CSV of GSSR"):
        foreign.convert(tmp_path / "run", tmp_path / "bad")
    with pytest.raises(ScoreError, match="holds no file of GSSR"):
        foreign.convert(tmp_path / "run" / "absent", tmp_path / "bad")


def gssr(step: Path, job: str, rows: dict[str, tuple[float, float, float]], nodes: int = 1) -> None:
    """Write what GSSR's recorder writes of a step on one node with one GPU: minimum, mean and maximum of each field."""
    step.mkdir(parents=True)
    columns = [f"DCGM_FI_{field}_{kind}" for field in rows for kind in ("min", "avg", "max")]
    lines = [",".join(["timestamp", "gpuId", *columns])]
    values = ",".join(f"{value:g}" for three in rows.values() for value in three)
    lines += [f"{second},0,{values}" for second in range(1, 31)]
    (step / "proc_0.csv").write_text("\n".join(lines) + "\n")
    facts = {
        "step_nnodes": str(nodes),
        "date": "2026-03-01T10:00:00+0000",
        "cluster": "alps",
        "jobid": job,
        "jobname": "train",
        "executable": "python",
    }
    text = ",\n".join(f'    "{key}": "{value}"' for key, value in facts.items())
    (step / "proc_0.meta.txt").write_text(f'{{\n{text},\n    "arguments": "\'a "b"\' "\n}}\n')


BUSY = {"DEV_GPU_UTIL": (100, 100, 100), "PROF_SM_ACTIVE": (0.9, 0.9, 0.9), "PROF_PIPE_TENSOR_ACTIVE": (0.3, 0.3, 0.3)}
BUSY |= {f"PROF_PIPE_FP{bits}_ACTIVE": (0, 0, 0) for bits in (64, 32, 16)}
BUSY |= {"PROF_DRAM_ACTIVE": (0.2, 0.2, 0.2)}
LINK = {f"PROF_{link}_{way}_BYTES": (0, 0, 0) for link in ("PCIE", "NVLINK") for way in ("TX", "RX")}
C2C = {f"PROF_C2C_{way}_ALL_BYTES": (1e6, 1e6, 1e6) for way in ("TX", "RX")}


def imported(tmp_path: Path, rows: dict[str, Any], model: str = "NVIDIA GH200 120GB", nodes: int = 1) -> Summary:
    gssr(tmp_path / "run" / "alps_12345678" / "step_0", "12345678", rows, nodes)
    (made,) = foreign.convert(tmp_path / "run", tmp_path / "out", model)
    return summarise(open_dataset(made))


def test_gssr_zeroes_what_is_above_2e9_and_nobody_calls_it_idle(tmp_path: Path) -> None:
    """The whole job; 89 % of a link that is recorded as 0 is no 30 %; idle is not told without engine activity."""
    got = imported(tmp_path, BUSY | LINK | C2C, nodes=2)
    assert (got.job, got.step, got.label, got.wanted) == ("12345678", "0", "train", 2)
    assert got.seconds == pytest.approx(30) and got.command == "python"  # of the rest, what GSSR writes is no JSON
    assert got.saturation.low == pytest.approx(0.3) and got.saturation.high is None
    assert "NVLink, PCIe is missing, which is not zero" in got.saturation.reason
    assert any("GSSR records what is above 2e9 B/s as 0" in line for line in got.quality), got.quality
    assert got.score.idle == got.score.narrow == 0 and got.score.unexplained == pytest.approx(0.1)
    assert got.score.unsure == pytest.approx(1) and got.phases == ()
    assert got.view.start == pytest.approx(1772359200 * 1e9)


def test_gssr_links_that_were_recorded_count(tmp_path: Path) -> None:
    """C2C too; and a mean of 0 below a maximum that is not."""
    some = dict.fromkeys(LINK, (0, 0, 1000000.0))
    fast = dict.fromkeys(C2C, (400000000.0, 1800000000.0, 0))
    got = imported(tmp_path, BUSY | some | fast)
    assert got.saturation.value == pytest.approx(0.3) and not got.view.doubtful
    assert got.view.means["c2c_tx"][0] == pytest.approx(1.8e9, rel=1e-3)


def test_gssr_of_another_model(tmp_path: Path) -> None:
    """What it did not record is no zero where there is such a link, and nothing where there is none."""
    some = dict.fromkeys(LINK, (1000000.0, 1000000.0, 1000000.0))
    assert imported(tmp_path / "a", BUSY | some, "NVIDIA H100 80GB HBM3").saturation.value == pytest.approx(0.3)
    got = imported(tmp_path / "b", BUSY | some)
    assert got.saturation.high is None and got.saturation.reason == "C2C is missing, which is not zero"
    got = imported(tmp_path / "c", BUSY | some, "")
    assert got.saturation.high is None and "nothing is known of the links of unknown GPU" in got.saturation.reason


def test_gssr_steps_are_apart(tmp_path: Path) -> None:
    """Two steps of a job, and another job's."""
    for job, step in (("7", 0), ("7", 1), ("8", 0)):
        gssr(tmp_path / "run" / f"alps_{job}" / f"step_{step}", job, BUSY | LINK | C2C)
    made = foreign.convert(tmp_path / "run", tmp_path / "out")
    assert [path.name for path in made] == ["7.0", "7.1", "8.0"]
    for path in made:
        got = summarise(open_dataset(path))
        assert f"{got.job}.{got.step}" == path.name and got.score.gpus == 1
