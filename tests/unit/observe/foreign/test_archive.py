"""ClusterCockpit's archive: what archives of sites have besides, as its own test data show (fritz, job 398759)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from piolet.observe.foreign import reading
from piolet.observe.foreign.common import Asked

from tests.unit.observe.foreign.recorded import START, mean, metric, reasons, stepped, write_job

META: dict[str, Any] = {
    "jobId": 398759, "user": "alice", "project": "p", "cluster": "fritz", "subCluster": "main", "numNodes": 1,
    "numHwthreads": 72, "jobState": "completed", "startTime": START, "duration": 456,
    "resources": [{"hostname": "f1039"}],
}  # fmt: skip


def series(data: list[float], number: str | None = None) -> dict[str, Any]:
    """Return a series of the one node."""
    return {"hostname": "f1039", "data": data} | ({"id": number} if number is not None else {})


def test_a_series_of_a_node_may_have_an_id(tmp_path: Path) -> None:
    """It is still the node's: a share of 72 threads. Where the node is told, both sockets may be called 0."""
    data = {
        "cpu_user": {"node": metric({"base": ""}, [series([50.0] * 8, "0")])},
        "cpu_power": {
            "node": metric({"base": "W"}, [series([341.0] * 8, "0")]),
            "socket": metric({"base": "W"}, [series([170.0] * 8, "0"), series([171.0] * 8, "0")]),
        },
    }
    write_job(tmp_path / "job", META, data)
    host = stepped([tmp_path / "job"], tmp_path / "out").table("host")
    assert (mean(host, "cpu"), mean(host, "cpu_power"), len(host)) == (36, 341, 8)


def test_parts_of_a_node_are_added(tmp_path: Path) -> None:
    """Threads of a node: each is a share of one; a value that one of them lacks is the node's to lack."""
    parts = [series([100.0, 50.0, 0.0], str(one)) for one in range(4)]
    parts[3]["data"] = [100.0, None, 0.0]
    write_job(tmp_path / "job", META | {"duration": 180}, {"cpu_user": {"hwthread": metric({"base": "%"}, parts)}})
    step = stepped([tmp_path / "job"], tmp_path / "out")
    assert step.table("host")["cpu"].to_pylist() == [4, None, 0]
    assert reasons(step)["cpu"].startswith("processor time of users")


def test_prefixes_and_units_of_older_archives(tmp_path: Path) -> None:
    """GB and GiB are not the same; before version 1 a unit was a text."""
    for place, (unit, expected) in enumerate(
        (({"base": "B", "prefix": "G"}, 1e9), ({"base": "B", "prefix": "Gi"}, 2**30), ("MB", 1e6), ({"base": "B"}, 1))
    ):
        told = metric({}, [series([2.0] * 8)]) | {"unit": unit}
        write_job(tmp_path / str(place) / "job", META, {"mem_used": {"node": told}})
        step = stepped([tmp_path / str(place)], tmp_path / f"out{place}")
        assert mean(step.table("host"), "memory") == pytest.approx(2 * expected, rel=1e-6)


def test_timesteps_of_metrics_may_differ(tmp_path: Path) -> None:
    """Rows of each; what the other metric has is missing there."""
    data = {
        "mem_used": {"node": metric({"base": "B"}, [series([1.0] * 8)])},
        "cpu_power": {"node": metric({"base": "W"}, [series([5.0] * 15)], 30)},
    }
    write_job(tmp_path / "job", META, data)
    host = stepped([tmp_path / "job"], tmp_path / "out").table("host")
    assert len(host) == 23 and host["memory"].null_count == 15 and host["cpu_power"].null_count == 8


def test_runs_of_a_job_that_was_requeued_are_apart(tmp_path: Path) -> None:
    """One archive has both, by their start; --job chooses, and says what is not there."""
    data = {"mem_used": {"node": metric({"base": "B"}, [series([1.0] * 8)])}}
    for start in (START, START + 1000):
        write_job(tmp_path / "fritz/398/759" / str(start), META | {"startTime": start}, data)
    write_job(tmp_path / "fritz/398/760/1", META | {"jobId": 398760}, data)
    steps = reading.read([tmp_path], "", Asked())
    assert [step.name for step in steps] == ["398759.batch", "398759.batch-r1", "398760.batch"]
    assert [step.name for step in reading.read([tmp_path], "", Asked(job="398760"))] == ["398760.batch"]


def test_a_series_that_ends_early_is_said(tmp_path: Path) -> None:
    """The node was gone after three minutes."""
    write_job(tmp_path / "job", META, {"mem_used": {"node": metric({"base": "B"}, [series([1.0] * 3)])}})
    step = stepped([tmp_path / "job"], tmp_path / "out")
    (row,) = [row for row in step.quality.to_pylist() if row["source"] == "mem_used"]
    assert (row["reason"], row["values"]) == ("the series ends before the job", 4)
