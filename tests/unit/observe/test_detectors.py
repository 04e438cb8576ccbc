"""Detectors on made runs: each finds its fault where it is, says nothing of clean ones, and cannot tell without data.

Rates of error are measured by `python -m tests.scale.findings`; here are a few seeds of each.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from piolet.api import Detector
from piolet.observe import finding

from tests.scale import findings
from tests.scale.findings import grid_of
from tests.simulators import runs, runs2
from tests.simulators.runbase import Truth

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


_SAME = "is behind: its GPUs did the same work as the others, and were busy"
_HOST = "less of the time, as they waited for their host"


@pytest.mark.parametrize(
    ("seed", "times", "text"),
    [
        (0, 1, f"nid000002 {_SAME} 26 % {_HOST}; tasks there waited for a processor 40 % of the time"),
        (19, 1, f"nid000004 {_SAME} 16 % {_HOST}; its CPU quota held up 0.6 cores on average"),
        (19, 10, f"nid000004 {_SAME} 16 % {_HOST}; its CPU quota held up 5.6 cores on average"),
        (19, 0, f"nid000004 {_SAME} 16 % {_HOST}"),
        (5, 1, "nid000001 is behind: its GPUs were busy 36 % less of the time than the others; "
               "tasks there waited for a processor 71 % of the time"),
    ],
)  # fmt: skip
def test_what_is_said_of_a_node_whose_host_holds_its_gpus_up(seed: int, times: float, text: str) -> None:
    """The quota's time is of all processors together: of some at once it is more than all of the time."""
    run = runs.make(seed, "straggler")
    run._tables["host"]["cpu_throttled"] *= times
    (found,) = said("straggler", run).findings
    assert found.text == text


def slowed(begin: int, end: int, times: float, written: float = 1.0, bins: int = 60, width: float = 2.0) -> Any:
    """Return a step of two nodes whose mount takes so many times as long between two bins, and is written to."""
    start, at = 1_790_000_000 * 10**9, np.arange(1, bins + 1)
    slow = (at > begin) & (at <= end)
    rows = {
        "time": np.tile(start + (at * width * 1e9).astype(np.int64), 2), "span": np.full(2 * bins, width),
        "node": np.repeat(["n1", "n2"], bins), "mount": ["/data"] * 2 * bins,
        "wait": np.tile(np.where(slow, 0.02 * times, 0.02), 2),
        "write": np.tile(np.where(slow, 1e6 * written, 1e6), 2),
    }  # fmt: skip
    meta = {"job": "1", "step": "0", "start": start, "end": start + int(bins * width) * 10**9, "nodes": ["n1", "n2"],
            "interval": width}  # fmt: skip
    return runs.Run(meta, {"io": rows}, Truth())


@pytest.mark.parametrize(
    "step, found",
    [
        (slowed(20, 40, 20), True),  # 40 s, 20 times as long
        (slowed(20, 40, 20, written=0), True),
        (slowed(20, 40, 8), False),  # not so much that half a minute is enough
        (slowed(20, 32, 20), False),  # 24 s
        (slowed(20, 40, 20, written=5), False),  # a checkpoint is written
        (columns_without(slowed(20, 40, 20), "io", "write"), False),  # or may be
        (slowed(20, 110, 8, bins=200), True),  # three minutes
    ],
)
def test_a_file_system_is_slow_for_minutes_or_very_slow_for_half_a_one(step: Any, found: bool) -> None:
    """The shorter the time, the more it takes, and what a checkpoint writes is none of it."""
    one = said("slow_file_system", step)
    assert one.state == (finding.FOUND if found else finding.NOTHING), one
    assert all((each.node, each.subject) == (None, "/data") for each in one.findings)


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


@NAMES
def test_a_detector_was_measured_as_it_is_and_is_as_good_as_was_asked(name: str) -> None:
    known = json.loads(findings.RATES.read_text())["detectors"][name]
    assert known["version"] == finding.load(name).version, "python -m tests.scale.findings measures it"
    assert finding.confidence(name, known["version"]), "what is installed has other rates: make plugins"
    assert [one["generator"] for one in known["measured"]] == ["runs", "runs2"]
    for one in known["measured"]:
        assert one["clean"] >= 1000 and one["faulty"] >= 1000
        assert one["false_positives"] <= 0.01 * one["clean"] and one["false_positives_most"] <= 0.02
        assert one["found"] >= 0.95 * one["faulty"]


def test_the_documents_have_what_was_measured() -> None:
    """`python -m tests.scale.findings --table` prints it."""
    page = Path(__file__).parents[3] / "docs/detectors.md"
    assert findings.table() in page.read_text()
