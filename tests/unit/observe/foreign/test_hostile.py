"""Broken and hostile files: one sentence, nothing written, no traceback, no hang, no memory without bound."""

from __future__ import annotations

import copy
import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from piolet.base.errors import ObserveError
from piolet.observe.foreign import common, reading
from piolet.observe.foreign.common import Asked

from tests.unit.observe.foreign import recorded

LINE = 'DCGM_FI_DEV_GPU_UTIL{gpu="0",UUID="GPU-a",Hostname="n"} 50'
OMNI = 'omnistat_vendor_power_watts{vendor="cray"} 500'


def refused(path: Path, kind: str = "", **asked: str) -> str:
    """Return how a file is refused."""
    with pytest.raises(ObserveError) as caught:
        reading.read([path], kind, Asked(**asked))
    assert "\n" not in caught.value.message and len(caught.value.message) < 700
    return caught.value.message


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (LINE, "cut off"),
        ("DCGM_FI_DEV_GPU_UTIL\n", "line 1 is no sample"),
        ("DCGM_FI_DEV_GPU_UTIL{gpu=0} 5\n", "line 1 has labels that are none"),
        ('DCGM_FI_DEV_GPU_UTIL{gpu="0",gpu="0"} 5\n', "line 1 has labels that are none"),
        ('DCGM_FI_DEV_GPU_UTIL{Hostname="n"} 5\n', "does not say|without a label|of which GPU"),
        ('DCGM_FI_DEV_GPU_UTIL{gpu="0"} 5\n', "of which node"),
        ("DCGM_FI_DEV_GPU_UTIL 0x10\n", "line 1 is no sample"),
        ("DCGM_FI_DEV_GPU_UTIL 1_0\n", "line 1 is no sample"),
        ("DCGM_FI_DEV_GPU_UTIL \u0661\n", "line 1 is no sample"),
        (f"{LINE}\n{LINE}\n", "again, and no time"),
        (f"{LINE} 1795000000\n", "milliseconds|between 2000 and 2100"),
        (f"{LINE} 1795000000000\n{LINE[:-2]}60 1795000000000\n", "has two values at"),
        (f"# HELP DCGM_FI_DEV_FB_USED Used (in KB).\n{LINE.replace('GPU_UTIL', 'FB_USED')}\n", "says 'in KB'"),
        (f"{LINE}00 1795000000000\n{LINE}00 1795000010000\n", "2 of 2 values are none of utilisation"),
        (f"{LINE} 1795000000000\n", "one scrape only"),
        (f"DCGM_FI_DEV_GPU_UTIL{{{'x' * 20000}}} 1\n", "line 1 is no sample"),
        ("DCGM_FI_DEV_ENC_UTIL 5\n", "no metric of a GPU that is known"),
    ],
)
def test_scrapes(tmp_path: Path, text: str, why: str) -> None:
    """Cut off, no text format, no labels, twice, other units."""
    path = tmp_path / "1795000000.prom"
    path.write_text(text, "utf-8")
    with pytest.raises(ObserveError, match=why):
        reading.read([path], "dcgm", Asked(job="1"))


def test_scrapes_of_one_moment_that_differ(tmp_path: Path) -> None:
    """Two files of one second say different things; those that say the same count once."""
    for name, value in (("a-1795000000", 50), ("b-1795000000", 60), ("a-1795000010", 50)):
        (tmp_path / name).write_text(f"{LINE[:-2]}{value}\n")
    assert "two values at" in refused(tmp_path, job="1")
    (tmp_path / "b-1795000000").write_text(f"{LINE}\n")
    (step,) = reading.read([tmp_path], "", Asked(job="1"))
    assert len(step.tables["gpu"]["time"]) == 2


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("omnistat_vendor_accel_power_watts 5\n", "has the label accel="),
        ('omnistat_vendor_power_watts{accel="0"} 5\n', "has the label accel="),
        (f"{OMNI}\n", "one scrape only"),
        ("# HELP omnistat_vendor_power_watts Node-level power (in kW)\n" + OMNI + "\n", "says 'in kW'"),
        ("".join(f"{OMNI}000 179500000{n}000\n" for n in range(3)), "values are none of node_power"),
        ('rmsjob_info{jobid="1"} 1\n', "no power of pm_counters"),
        ('rmsjob_info{jobid="1"} 1\nrmsjob_info{jobid="2"} 1\n' + OMNI + "\n", "of the jobs 1, 2"),
    ],
)
def test_omnistat(tmp_path: Path, text: str, why: str) -> None:
    """The same of Omnistat."""
    path = tmp_path / "1795000000.prom"
    path.write_text(text, "utf-8")
    with pytest.raises(ObserveError, match=why):
        reading.read([path], "omnistat", Asked(job="" if "jobid" in text else "1", node="n"))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("500 W 1795000000000000 us\n500 W", "cut off"),
        ("500 W 1795000000000000 us\nhello\n", "line 2 is not"),
        ("500 J 1795000000000000 us\n", "line 1 is in another unit than W"),
        ("500 W 1795000000 us\n", "line 1 is not"),
        ("500 W 5795000000000000 us\n", "not between 2000 and 2100"),
        ("500 W\n", "line 1 is not"),
        ("500 W 1795000000000000 us\n", "one scrape only"),
        ("1 W 1795000000000000 us\n2 W 1795000000000000 us\n", "has two values at"),
        ("99999999 W 1795000000000000 us\n99999999 W 1795000001000000 us\n", "values are none of node_power"),
    ],
)
def test_pm_counters(tmp_path: Path, text: str, why: str) -> None:
    """The same of the counters themselves."""
    (tmp_path / "power").write_text(text, "utf-8")
    with pytest.raises(ObserveError, match=why):
        reading.read([tmp_path], "pm_counters", Asked(job="1"))


def spoiled(directory: Path, spoil: Callable[[dict[str, Any], dict[str, Any]], Any]) -> Path:
    """Return the directory of a job of which something is spoiled."""
    data = recorded.clustercockpit(directory / "good", packed=False)
    (found,) = (directory / "good").rglob("meta.json")
    meta, data = json.loads(found.read_text()), copy.deepcopy(data)
    spoil(meta, data)
    recorded.write_job(directory / "bad", meta, data)
    return directory / "bad"


UTIL: Callable[[dict[str, Any]], Any] = lambda data: data["acc_utilization"]["accelerator"]  # noqa: E731


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda meta, data: meta.pop("startTime"), "startTime is no whole number"),
        (lambda meta, data: meta.update(startTime=17), "startTime is before 2000"),
        (lambda meta, data: meta.update(jobId="x/../y"), "jobId is no whole number"),
        (lambda meta, data: meta.update(resources=[]), "resources is no list of nodes"),
        (lambda meta, data: meta["resources"].append(meta["resources"][0]), "is there twice"),
        (lambda meta, data: meta.update(user="\x1b[31m"), "user is no text"),
        (lambda meta, data: UTIL(data).update(unit={"base": "B"}), "is in 'B', and % is expected"),
        (lambda meta, data: data["acc_power"]["accelerator"].update(unit={"base": "W", "prefix": "X"}), "is in 'XW'"),
        (lambda meta, data: data["acc_mem_used"]["accelerator"].pop("unit"), "has no unit"),
        (lambda meta, data: UTIL(data).update(timestep=0), "timestep of acc_utilization is 0"),
        (lambda meta, data: UTIL(data).update(timestep=600), "values of 600 s each, and the job took 1800 s"),
        (lambda meta, data: UTIL(data).update(timestep=True), "timestep of acc_utilization is no whole number"),
        (lambda meta, data: UTIL(data)["series"].append(UTIL(data)["series"][0]), "two series of a0121"),
        (lambda meta, data: UTIL(data)["series"][0].update(hostname="other"), "no node of the job"),
        (lambda meta, data: UTIL(data)["series"][0].update(data=["1"] * 30), "are no numbers"),
        (lambda meta, data: UTIL(data)["series"][0].update(data=[10**400] * 30), "beyond all bounds"),
        (lambda meta, data: UTIL(data)["series"][0].update(data=[4000.0] * 30), "are none of utilisation"),
        (lambda meta, data: UTIL(data)["series"][0].pop("id"), "of which accelerator"),
        (lambda meta, data: data.update(acc_used=data["acc_utilization"]), "is there twice, the second time"),
        (lambda meta, data: data.update(filesystems={}), "filesystems is no list"),
    ],
)
def test_clustercockpit(tmp_path: Path, spoil: Callable[[Any, Any], Any], why: str) -> None:
    """Of both files: what is missing, of another kind, unit or length, or there twice."""
    with pytest.raises(ObserveError, match=why):
        reading.read([spoiled(tmp_path, spoil)], "", Asked())


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[" * 100_000, "nested too deeply|no JSON"),
        ('{"a":' * 100_000, "nested too deeply|no JSON"),
        ('{"acc_power": NaN}', "NaN is no number"),
        ('{"acc_power": {}, "acc_power": {}}', "'acc_power' is there twice"),
        ("\x00", "is no JSON"),
        ("[]", "is no object"),
        ("", "is no JSON"),
    ],
)
def test_json(tmp_path: Path, text: str, why: str) -> None:
    """What is none, is too deep, or has a name twice."""
    place = spoiled(tmp_path, lambda meta, data: None)
    (place / "data.json").write_text(text)
    with pytest.raises(ObserveError, match=why):
        reading.read([place], "", Asked())


def test_files_that_grow(tmp_path: Path) -> None:
    """A packed file of zeros, a large one, one cut off, a pipe, a directory without files, and nothing."""
    for name, data, why in (
        ("bomb", gzip.compress(bytes(4 << 20)), "larger than the 1 MiB"),
        ("large", bytes(2 << 20), "larger than the 1 MiB"),
        ("cut", gzip.compress(b"x" * 1000)[:-9], "cannot read"),
        ("damaged", b"\x1f\x8b" + bytes(100), "cannot read"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ObserveError, match=why):
            common.content_of(tmp_path / name, 1 << 20)
    os.mkfifo(tmp_path / "pipe")
    assert "no regular file" in refused(tmp_path / "pipe", "dcgm", job="1")
    assert "holds no file of GSSR" in refused(tmp_path / "pipe", "gssr", job="1")
    (tmp_path / "empty").mkdir()
    assert "holds no file" in refused(tmp_path / "empty", job="1")
    assert "no file in the directory" in refused(tmp_path / "empty", "dcgm", job="1")
    assert "there is no" in refused(tmp_path / "absent", job="1")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"metadata":' + "[" * 100_000, "nested too deeply|is not JSON of GSSR"),
        ('{"metadata": {"sampling_time": 1000, "start_time": 1e30}, "data": {"0": {"sm_active": [1]}}}', "start_time"),
        ('{"metadata": {"sampling_time": 1000, "start_time": NaN}, "data": {"0": {"sm_active": [1]}}}', "start_time"),
        ('{"metadata": {"sampling_time": NaN, "start_time": 1}, "data": {"0": {"sm_active": [1]}}}', "is not JSON"),
        ('{"metadata": {"sampling_time": 1000, "start_time": 1}, "data": {"0": {"sm_active": []}}}', "no samples"),
        ('{"metadata": {"sampling_time": 1000, "start_time": 1}, "data": {"0": []}}', "not what they should be"),
    ],
)
def test_gssr_json(tmp_path: Path, text: str, why: str) -> None:
    """Deep, and times that are none."""
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ObserveError, match=why):
        reading.read([tmp_path / "run.json"], "", Asked(job="1"))


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ("1,0,0.5\n1,0,0.6\n", "twice or out of order at timestamp 1"),
        ("2,0,0.5\n1,0,0.6\n", "twice or out of order at timestamp 1"),
        ("nan,0,0.5\n", "no time in seconds"),
        ("1e300,0,0.5\n", "no time in seconds"),
        ("1,,0.5\n", "is not CSV of GSSR"),
        ("1,0\n2,0,0.5\n", "not as many columns"),
        ("1,0,0.5,7\n", "not as many columns"),
        ("1,0\n", "holds no samples"),
        ("1,0,0.5", "holds no samples"),
        ("1,0,half\n", "is not CSV of GSSR"),
        ("1,0," + "5" * 200_000 + "\n", "is not CSV of GSSR"),
        ("1,0,70\n2,0,80\n", "values are none of sm"),
        ("", "holds no samples"),
    ],
)
def test_gssr_csv(tmp_path: Path, rows: str, why: str) -> None:
    """Rows twice, in no order, without an end, and percent in place of shares."""
    place = tmp_path / "step_0"
    place.mkdir()
    (place / "proc_0.csv").write_text("timestamp,gpuId,DCGM_FI_PROF_SM_ACTIVE_avg\n" + rows)
    (place / "proc_0.meta.txt").write_text('{"date": "2026-11-18T10:00:00+0000", "jobid": "5"}')
    with pytest.raises(ObserveError, match=why):
        reading.read([tmp_path], "", Asked())


@given(st.data())
def test_any_change_is_read_or_refused(data: st.DataObject) -> None:
    """Whatever bytes of a file change: it is data, or an ObserveError."""
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        kind = data.draw(st.sampled_from(["dcgm", "omnistat", "clustercockpit", "gssr"]))
        if kind == "dcgm":
            recorded.dcgm(directory, 1, 1, 3)
        elif kind == "omnistat":
            recorded.omnistat(directory, 3)
        elif kind == "clustercockpit":
            recorded.clustercockpit(directory, packed=data.draw(st.booleans()))
        else:
            about = {"job_id": 7, "sampling_time": 1000, "start_time": recorded.START}
            told = {"metadata": about, "data": {"0": {"sm_active": [0.5, 0.25]}}}
            (directory / "run.json").write_text(json.dumps(told))
        files = sorted(path for path in directory.rglob("*") if path.is_file())
        path = files[data.draw(st.integers(0, len(files) - 1))]
        content = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 4))):
            place = data.draw(st.integers(0, len(content) - 1))
            content[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
        path.write_bytes(content)
        try:
            for step in reading.read(
                [directory], kind, Asked(job="7", node="n") if kind != "clustercockpit" else Asked()
            ):
                reading.write(step, directory / "out")
        except ObserveError:
            assert not list((directory / "out").rglob("*.parquet")) or kind == "clustercockpit"
