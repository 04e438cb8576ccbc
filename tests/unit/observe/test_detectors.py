"""Detectors on made runs: each finds its fault where it is, says nothing of clean ones, and cannot tell without data.

Rates of error are measured by `python -m tests.scale.findings`; here are a few seeds of each.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest
from piolet.api import Detector
from piolet.observe import finding

from tests.scale.findings import grid_of
from tests.simulators import runs, runs2

SEEDS = range(5)
NAMES = pytest.mark.parametrize("name", finding.OWN)


def said(name: str, run: Any) -> finding.Judged:
    return finding.judged(finding.load(name), grid_of(run))


@NAMES
@pytest.mark.parametrize("maker", [runs, runs2], ids=["runs", "runs2"])
def test_a_detector_finds_its_fault_with_evidence_and_where_it_is(name: str, maker: ModuleType) -> None:
    named = found = 0
    for seed in SEEDS:
        run = maker.make(seed, name)
        one = said(name, run)
        assert one.state in (finding.FOUND, finding.NOTHING), one.reason
        for first in one.findings[:1]:
            found += 1
            assert first.text and first.advice and finding.evidence(first)
            assert first.start is None or first.end is None or run.start <= first.start <= first.end <= run.end + 10**9
            nodes = {each.node for each in one.findings}
            named += run.truth.node is None or run.truth.node in nodes or len(run.nodes) == 1
    assert found >= len(SEEDS) - 1
    assert named >= found - 1


@NAMES
def test_a_detector_says_nothing_of_clean_runs(name: str) -> None:
    for seed in range(12):
        one = said(name, runs.make(seed))
        assert one.state in (finding.NOTHING, finding.UNKNOWN), (seed, one)


@NAMES
def test_a_step_without_data_is_none_of_which_a_detector_says_that_all_is_well(name: str) -> None:
    bare = runs.make(1, name)
    one = said(name, runs.Run(bare.meta, {}, bare.truth))
    assert one.state == finding.UNKNOWN
    assert one.reason and not one.reason.endswith(".")


@NAMES
def test_a_detector_says_what_it_is_and_where_its_thresholds_come_from(name: str) -> None:
    detector = finding.load(name)
    assert detector.name == name
    assert detector.text and detector.how and detector.needs and detector.limits
    assert (detector.effect, detector.unit) == (runs.FAULTS[name].effect, runs.FAULTS[name].unit)
    for limit in detector.limits.values():
        assert limit.source and limit.unit and limit.date.startswith("20")


def columns_without(run: Any, table: str, *columns: str) -> Any:
    tables = {name: dict(rows) for name, rows in run._tables.items()}
    for column in columns:
        tables[table].pop(column, None)
    return runs.Run(run.meta, tables, run.truth)


@pytest.mark.parametrize(
    "name, table, columns",
    [
        ("silent_counters", "gpu", ("utilisation",)),
        ("throttling", "gpu", ("clock_events",)),
        ("data_loader_gaps", "host", ("io_pressure", "cpu_pressure")),
        ("slow_file_system", "io", ("wait",)),
        ("link_retries", "net", ("retries", "errors")),
        ("memory_growth", "host", ("memory_limit",)),
        ("checkpoint_stall", "host", ("file_write", "write", "io_pressure")),
        ("rank_hung", "gpu", ("sm", "power")),
        ("waiting_on_one", "gpu", ("engine", "utilisation")),
        ("straggler", "gpu", ("clock_sm", "sm")),
    ],
)
def test_without_the_column_that_it_needs_a_detector_cannot_tell(
    name: str, table: str, columns: tuple[str, ...]
) -> None:
    run = runs.make(0, name)
    tables = dict(run._tables, events={})
    assert said(name, runs.Run(run.meta, tables, run.truth)).state == finding.FOUND
    assert said(name, columns_without(runs.Run(run.meta, tables, run.truth), table, *columns)).state == finding.UNKNOWN


def test_a_loss_that_is_a_null_in_the_file_is_no_number() -> None:
    many = (runs.make(seed, "loss_spike") for seed in range(20))
    run = next(one for one in many if np.isnan(one._tables["marks"]["value"]).any())
    assert run.table("marks")["value"].null_count
    said_of = said("loss_spike", run).findings[0]
    assert "no number" in said_of.text and said_of.unit == "count"


def test_flapping_links_and_killed_processes_are_found_without_figures() -> None:
    run = runs.make(1)
    event = {"time": np.array([run.start + 10**9]), "node": [run.nodes[0]], "subject": ["port:hsn0"],
             "kind": ["link.flap"], "source": ["kernel"], "severity": ["warning"], "text": ["down"],
             "body": ["{}"]}  # fmt: skip
    one = said("link_retries", runs.Run(run.meta, {"events": event}, run.truth))
    assert one.findings[0].subject == "hsn0" and one.findings[0].unit == "count"
    host = {"time": np.array([run.start + 10**10]), "span": np.array([10.0]), "node": [run.nodes[0]],
            "out_of_memory": np.array([2.0])}  # fmt: skip
    one = said("memory_growth", runs.Run(run.meta, {"host": host}, run.truth))
    assert one.findings[0].node == run.nodes[0] and one.findings[0].effect == 2


def test_every_detector_is_one_that_has_a_fault_to_be_measured_on() -> None:
    assert list(finding.OWN) == list(runs.FAULTS)
    assert all(issubclass(type(finding.load(name)), Detector) for name in finding.OWN)
