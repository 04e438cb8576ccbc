"""Scrapes: when they were taken, what a sample covers, gaps, blanks, instances of MIG, names of other releases."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from piolet.base.errors import ObserveError
from piolet.observe.foreign import reading
from piolet.observe.foreign.common import Asked

from tests.unit.observe.foreign.recorded import START, reasons, scrape, stepped

A = 'gpu="0",UUID="GPU-a",Hostname="n"'


def at(directory: Path, seconds: float, *lines: str) -> None:
    """Write a scrape."""
    (directory / f"{START + seconds:.0f}.prom").write_text(scrape(lines))


def test_a_gap_is_said_and_not_filled(tmp_path: Path) -> None:
    """No scrape for five minutes: the next sample covers as much as is usual, and quality has the rest."""
    for seconds in (*range(0, 100, 10), *range(400, 500, 10)):
        at(tmp_path, seconds, f"DCGM_FI_DEV_GPU_UTIL{{{A}}} 50")
    step = stepped([tmp_path], tmp_path / "out", job="1", step="0")
    assert set(step.table("gpu")["span"].to_pylist()) == {10.0} and step.name == "1.0"
    (gap,) = step.quality.to_pylist()
    assert (gap["source"], gap["reason"], gap["values"], gap["subject"]) == ("scrapes", "no scrape", 30, "GPU-a")
    assert (gap["end"] - gap["start"]).total_seconds() == 300


def test_blanks_and_values_that_are_none(tmp_path: Path) -> None:
    """DCGM's words for none, NaN, and a temperature that there cannot be (its issue 312): missing, not zero."""
    for tick, value in enumerate(("40", "9223372036854775794", "NaN", "2147483632", "82505", "41", "42", "43")):
        at(tmp_path, 10 * tick, f"DCGM_FI_DEV_GPU_TEMP{{{A}}} {value}")
    step = stepped([tmp_path], tmp_path / "out", job="1")
    assert step.table("gpu")["temperature"].to_pylist() == [40, None, None, None, None, 41, 42, 43]
    told = {row["reason"]: row["values"] for row in step.quality.to_pylist()}
    assert told == {"not a number, or blank": 3, "outside of what there can be: -100 to 200 degC": 1}


def test_names_of_dcgm_exporter_4_9(tmp_path: Path) -> None:
    """Base units, and the label hostname."""
    labels = A.replace("Hostname", "hostname")
    for tick in range(2):
        at(
            tmp_path,
            10 * tick,
            f"DCGM_FI_DEV_GPU_UTIL_RATIO{{{labels}}} 0.75",
            f"DCGM_FI_DEV_SM_CLOCK_HERTZ{{{labels}}} 1.98e+09",
            f"DCGM_FI_DEV_FB_USED_BYTES{{{labels}}} 1073741824",
            f"DCGM_FI_DEV_GPU_ENERGY_JOULES_TOTAL{{{labels}}} {1000 + 5000 * tick}",
        )
    row = stepped([tmp_path], tmp_path / "out", job="1").table("gpu").to_pylist()[1]
    assert (row["utilisation"], row["clock_sm"], row["memory_used"], row["energy"]) == (0.75, 1980, 2**30, 6000)


def test_a_counter_that_begins_anew_only_grows(tmp_path: Path) -> None:
    """The driver was loaded again: what it had counted stays."""
    for tick, value in enumerate((5000, 9000, 1000, 4000)):
        at(tmp_path, 10 * tick, f"DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{{{A}}} {value}")
    step = stepped([tmp_path], tmp_path / "out", job="1")
    assert step.table("gpu")["energy"].to_pylist() == [5, 9, 9, 12]
    assert "began anew 1 times" in reasons(step)["DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION"]


def test_instances_of_mig_are_devices(tmp_path: Path) -> None:
    """Two instances of one GPU are apart."""
    for tick in range(3):
        lines = [f'DCGM_FI_PROF_SM_ACTIVE{{{A},GPU_I_PROFILE="1g.6gb",GPU_I_ID="{one}"}} 0.{one}' for one in (3, 4)]
        at(tmp_path, 10 * tick, *lines)
    step = stepped([tmp_path], tmp_path / "out", job="1")
    assert [one["uuid"] for one in step.meta["devices"]["n"]] == ["GPU-a/3", "GPU-a/4"]
    assert sorted(set(zip(*(step.table("gpu")[name].to_pylist() for name in ("gpu", "uuid")), strict=True))) == [
        (0, "GPU-a/3"),
        (1, "GPU-a/4"),
    ]


def test_a_gpu_of_several_pods_counts_once(tmp_path: Path) -> None:
    """Shared GPUs are there once for each pod, with the same value."""
    for tick in range(3):
        at(tmp_path, 10 * tick, *(f'DCGM_FI_PROF_SM_ACTIVE{{{A},pod="{pod}"}} 0.5' for pod in "xy"))
    assert len(stepped([tmp_path], tmp_path / "out", job="1").table("gpu")) == 3


def test_jobs_are_told_apart(tmp_path: Path) -> None:
    """Two jobs on one node: one has to be named, and only its GPUs are read."""
    for tick in range(2):
        labels = [f'gpu="{gpu}",UUID="GPU-{gpu}",Hostname="n",hpc_job="{7 + gpu}"' for gpu in (0, 1)]
        at(tmp_path, 10 * tick, *(f"DCGM_FI_PROF_SM_ACTIVE{{{one}}} 0.5" for one in labels))
    with pytest.raises(ObserveError, match="of the jobs 7, 8"):
        reading.read([tmp_path], "", Asked())
    with pytest.raises(ObserveError, match="not of 9"):
        reading.read([tmp_path], "", Asked(job="9"))
    step = stepped([tmp_path], tmp_path / "out", job="8", step="2")
    assert step.name == "8.2" and set(step.table("gpu")["uuid"].to_pylist()) == {"GPU-1"}


def test_times_of_samples_and_of_files(tmp_path: Path) -> None:
    """Times in the text; times in names; the files' own, which quality says."""
    (tmp_path / "all.prom").write_text(
        "".join(f"DCGM_FI_PROF_SM_ACTIVE{{{A}}} 0.{n + 1} {(START + 10 * n) * 1000}\n" for n in range(5))
    )
    step = stepped([tmp_path / "all.prom"], tmp_path / "out", job="1")
    assert step.start == (START - 10) * 10**9 and len(step.table("gpu")) == 5 and not len(step.quality)
    for kind, names in (("iso", ("20261118T100000Z", "2026-11-18T10-00-10Z")), ("own", ("a.prom", "b.prom"))):
        directory = tmp_path / kind
        directory.mkdir()
        for place, name in enumerate(names):
            (directory / name).write_text(f"DCGM_FI_PROF_SM_ACTIVE{{{A}}} 0.5\n")
            os.utime(directory / name, (START + 10 * place,) * 2)
        step = stepped([directory], tmp_path / f"out-{kind}", job="1")
        assert step.end - step.start == 20 * 10**9
        assert ("time" in reasons(step)) == (kind == "own")


def test_an_empty_scrape_and_metrics_without_a_column_are_said(tmp_path: Path) -> None:
    """The exporter did not answer once; and has more than the layout."""
    for tick in range(4):
        at(tmp_path, 10 * tick, f"DCGM_FI_PROF_SM_ACTIVE{{{A}}} 0.5", f"DCGM_FI_DEV_ENC_UTIL{{{A}}} 0")
    (tmp_path / f"{START + 20}.prom").write_text("")
    told = reasons(stepped([tmp_path], tmp_path / "out", job="1"))
    assert told["scrapes"] == "the scrape is empty"
    assert told["DCGM_FI_DEV_ENC_UTIL"] == "the layout has no column for it"


def test_power_and_energy_of_omnistat_are_compared(tmp_path: Path) -> None:
    """Samples of power say 500 W, and the counter 700 W."""
    for tick in range(10):
        at(tmp_path, 10 * tick, 'omnistat_vendor_power_watts{vendor="cray"} 500',
           f'omnistat_vendor_energy_joules{{vendor="cray"}} {7000 * tick}')  # fmt: skip
    step = stepped([tmp_path], tmp_path / "out", job="1", node="n")
    assert reasons(step)["node_power"] == "its samples are 500 W on average, and its energy counter says 700 W"


def test_written_whole_once(tmp_path: Path) -> None:
    """What is there stays as it is, and nothing half-written is left."""
    at(tmp_path, 0, f"DCGM_FI_PROF_SM_ACTIVE{{{A}}} 0.5")
    at(tmp_path, 10, f"DCGM_FI_PROF_SM_ACTIVE{{{A}}} 0.5")
    (step,) = reading.read([tmp_path], "", Asked(job="1"))
    out = tmp_path / "out"
    made = reading.write(step, out)
    with pytest.raises(ObserveError, match="is there already"):
        reading.write(step, out)
    step.meta["job"] = "2"
    step.meta["unknown"] = 1
    with pytest.raises(ObserveError, match="has no unknown"):
        reading.write(step, out)
    assert [path.name for path in made.parent.iterdir()] == ["1.batch"]
