"""Detectors on data that are hardly any, damaged, or nonsense: each says what it came to, and finds nothing in it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest
from piolet.base.errors import ObserveError
from piolet.observe import finding, layout, reading
from piolet.observe.grid import Grid

from tests.simulators import goodruns
from tests.simulators.runbase import START
from tests.unit.observe.test_detectors_good import kept

META = {"version": 1, "job": "7", "step": "0", "nodes": ["a"], "start": START, "end": START + 3600 * 10**9}
SAID = (finding.NOTHING, finding.UNKNOWN)


def said(directory: Path) -> list[finding.Judged]:
    grid = Grid(reading.open_step(directory))
    return list(finding.all_of([finding.load(name) for name in finding.OWN], grid))


def written(directory: Path, tables: dict[str, pa.Table], **meta: Any) -> Path:
    """Write tables as they are given, whatever the layout says."""
    directory.mkdir()
    (directory / "meta.json").write_text(json.dumps(META | meta))
    for name, table in tables.items():
        pq.write_table(table, directory / f"{name}.parquet")
    return directory


def filled(table: str, rows: int, value: Callable[[int], Any], names: int = 1) -> pa.Table:
    """Return rows of a table: times within the step, `value` of so many numbers, and so many names of each kind."""
    draw = np.random.default_rng(1)
    columns: dict[str, Any] = {}
    for field in layout.schema(table):
        if pa.types.is_timestamp(field.type):
            times = START // 1000 + draw.integers(0, 3_600_000_000, rows)
            columns[field.name] = pa.array(np.sort(times)).cast(field.type)
        elif field.name == "span":
            columns[field.name] = pa.array(np.full(rows, 10, np.float32))
        elif field.name == "out_of_memory":
            columns[field.name] = pa.array(np.zeros(rows, np.float32))
        elif pa.types.is_floating(field.type):
            columns[field.name] = pa.array(np.asarray(value(rows), np.float64)).cast(field.type, safe=False)
        elif pa.types.is_integer(field.type):
            columns[field.name] = pa.array(draw.integers(0, 4, rows)).cast(field.type)
        else:
            names_of = [f"{field.name}-{one}" for one in draw.integers(0, names, rows)]
            columns[field.name] = pa.array(names_of).dictionary_encode()
    return pa.table(columns)


ALL = ("gpu", "host", "io", "net", "events", "marks", "quality", "rollup")


@pytest.mark.parametrize("rows", [0, 1, 2, 30])
def test_of_hardly_any_rows_nothing_is_said(tmp_path: Path, rows: int) -> None:
    tables = {name: filled(name, rows, lambda many: np.full(many, 0.5)) for name in ALL}
    for one in said(written(tmp_path / "7.0", tables)):
        assert one.state in SAID, one


@pytest.mark.parametrize("value", [3e38, -3e38, 1e308, -1e308, float("inf"), float("-inf"), float("nan"), 0.0, -1.0])
def test_of_figures_that_nothing_can_have_nothing_is_said(tmp_path: Path, value: float) -> None:
    tables = {name: filled(name, 2000, lambda many: np.full(many, value), 3) for name in ALL}
    for one in said(written(tmp_path / "7.0", tables, nodes=["node-0", "node-1", "node-2"])):
        assert one.state in SAID, one


def test_text_where_numbers_are_due_is_an_error_of_that_table(tmp_path: Path) -> None:
    tables = {name: filled(name, 100, lambda many: np.full(many, 0.5)) for name in ALL}
    for name in ("gpu", "host", "io", "net", "marks"):
        last = tables[name].column_names[-1] if name != "marks" else "value"
        text = pa.array(["; rm -rf /"] * 100)
        tables[name] = pa.table({
            column: text if pa.types.is_floating(tables[name][column].type) or column == last else tables[name][column]
            for column in tables[name].column_names
        })  # fmt: skip
    for one in said(written(tmp_path / "7.0", tables)):
        assert one.state == finding.UNKNOWN or "cannot read" in one.reason, one
        assert one.state != finding.FOUND and "Traceback" not in one.reason


@pytest.mark.parametrize("table", ["gpu", "host", "io", "net", "marks"])
def test_a_file_that_is_cut_off_is_an_error_of_those_that_need_it(tmp_path: Path, table: str) -> None:
    directory = kept(goodruns.GOOD["large reads after small ones"](), tmp_path / "7.0")
    path = directory / f"{table}.parquet"
    whole = filled(table, 100, lambda many: np.full(many, 0.5))
    pq.write_table(whole, path)
    path.write_bytes(path.read_bytes()[:-200])
    states = [one for one in said(directory) if one.state == finding.FAILED]
    assert states and all(str(path) in one.reason for one in states)


@pytest.mark.parametrize(
    "meta",
    [
        {"interval": float("inf")}, {"interval": 1e300}, {"interval": -1}, {"interval": "ten"}, {"interval": 1e-300},
        {"end": START - 10**15}, {"end": START}, {"end": START + 1}, {"end": 2**62}, {"end": "never"}, {"start": 0},
        {"devices": 5}, {"devices": {"node1": 5}}, {"devices": {"node1": [5, None]}},
        {"devices": {"node1": [{"power_limit": "much", "clock_sm_max": [], "power_limit_default": -1e308}] * 4}},
        {"clock_offsets": {"node1": "x"}}, {"clock_offsets": {"node1": 1e300}}, {"clock_offsets": 7}, {"restarts": "x"},
    ],
    ids=str,
)  # fmt: skip
def test_what_meta_says_wrongly_makes_no_finding_and_no_failure(tmp_path: Path, meta: dict[str, Any]) -> None:
    directory = kept(goodruns.GOOD["two GPUs of four are used"](), tmp_path / "7.0")
    path = directory / "meta.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | meta))
    for one in said(directory):
        assert one.state in SAID, one


@pytest.mark.parametrize("meta", [{"nodes": 5}, {"nodes": "node1"}])
def test_nodes_that_are_no_names_are_damage(tmp_path: Path, meta: dict[str, Any]) -> None:
    directory = written(tmp_path / "7.0", {}, **meta)
    with pytest.raises(ObserveError, match="nodes"):
        reading.open_step(directory)


def test_many_rows_of_many_names_are_judged_in_time(tmp_path: Path) -> None:
    draw = np.random.default_rng(2)
    tables = {name: filled(name, 100_000, lambda many: draw.random(many), 200) for name in ALL}
    directory = written(tmp_path / "7.0", tables, interval=0.5)
    begin = time.process_time()
    for one in said(directory):
        assert one.state in (*SAID, finding.FOUND), one  # noise at random is none that one can say nothing false of
    assert time.process_time() - begin < 60
