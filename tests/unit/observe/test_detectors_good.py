"""Detectors on good runs that look like faults: they say nothing false of these, and find the fault that is beside."""

from __future__ import annotations

from pathlib import Path

import pytest
from piolet.observe import finding, layout, reading, thinning, writing
from piolet.observe.grid import Grid

from tests.simulators import goodruns, runs
from tests.simulators.runbase import Run


@pytest.mark.parametrize("name", goodruns.GOOD)
def test_nothing_false_is_said_of_a_good_run(name: str) -> None:
    grid = Grid(goodruns.GOOD[name]())
    for one in finding.all_of([finding.load(each) for each in finding.OWN], grid):
        assert one.state in (finding.NOTHING, finding.UNKNOWN), (one.detector, one.reason, one.findings)


@pytest.mark.parametrize("name", goodruns.FAULTY)
def test_the_fault_that_looks_like_it_is_found(name: str) -> None:
    one = finding.judged(finding.load(name), Grid(goodruns.FAULTY[name]()))
    assert one.state == finding.FOUND, one


def test_a_mark_that_no_number_comes_to_is_one_of_held_out_data_too() -> None:
    values = goodruns._falling(40)
    values[30:] = float("nan")
    one = finding.judged(finding.load("loss_spike"), Grid(goodruns._losses("val/loss", values)))
    assert one.findings[0].unit == "count"


def kept(run: Run, directory: Path) -> Path:
    """Write a made run as data of a step."""
    directory.mkdir()
    writing.write_meta(directory, run.meta)
    for table in layout.TABLES:
        writing.write_table(directory, table, run.table(table))
    return directory


@pytest.mark.parametrize("name", ["idle_tail", "throttling", "rank_hung", "slow_file_system", ""])
def test_samples_that_were_thinned_since_are_judged_as_they_are(name: str, tmp_path: Path) -> None:
    seed = next(seed for seed in range(20) if runs.make(seed, name).meta["interval"] == 10)
    directory = kept(runs.make(seed, name), tmp_path / "7.0")
    thinning.thin(directory, 30, 1.8e9)
    grid = Grid(reading.open_step(directory))
    assert grid.width == 30
    said = {one.detector: one for one in finding.all_of([finding.load(each) for each in finding.OWN], grid)}
    assert {each for each, one in said.items() if one.state == finding.FOUND} >= ({name} - {""})
    if not name:
        assert not [one for one in said.values() if one.state in (finding.FOUND, finding.FAILED)]
        assert said["idle_tail"].state == finding.NOTHING
