"""What is written is what is read; nothing is half-written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest
from piolet.base.errors import ObserveError
from piolet.observe import layout, reading, writing
from piolet.observe.reading import device_of

START = 1_700_000_000 * 10**9
META = {"job": "112", "step": "0", "start": START, "nodes": ["node1", "node2"]}


def test_a_table_comes_back(tmp_path: Path) -> None:
    writing.write_meta(tmp_path, META)
    rows = {
        "time": np.array([START + 10 * 10**9, START + 20 * 10**9]),
        "span": [10.0, 10.0],
        "node": ["node1", "node2"],
        "gpu": [0, 1],
        "uuid": ["GPU-1", None],
        "sm": [0.123456, float("nan")],
        "energy": np.array([123456.789, 2.0]),
    }
    path = writing.write_table(tmp_path, "gpu", rows)
    assert sorted(tmp_path.iterdir()) == [path, tmp_path / "meta.json"]
    step = reading.open_step(tmp_path)
    table = step.table("gpu")
    assert table.schema == layout.schema("gpu")
    assert table.schema.metadata[layout.VERSION_KEY] == b"1"
    assert table["time"].cast(pa.int64()).to_pylist() == [(START // 1000) + 10**7, (START // 1000) + 2 * 10**7]
    assert table["sm"].to_pylist() == [pytest.approx(0.1235), None]  # missing is null and no zero
    assert table["energy"].to_pylist() == [123456.789, 2.0]
    assert table["power"].null_count == 2
    assert table["uuid"].to_pylist() == ["GPU-1", None]
    assert (step.name, step.nodes, step.start) == ("112.0", ("node1", "node2"), START)
    assert step.end == START + 20 * 10**9  # no end in meta.json: when it was last heard of
    assert step.table("gpu", ["sm", "gpu"]).column_names == ["sm", "gpu"]


def test_whole_numbers_of_any_size_are_figures() -> None:
    """What a node sends is JSON: 123456789 B/s is a whole number there, which 32 bits do not hold exactly."""
    table = writing.conformed("host", {"read": [123456789, None, 1.5], "memory": [85520809984, 2**53 + 1, None]})
    assert table["read"].to_pylist() == [pytest.approx(123456789, rel=1e-3), None, 1.5]
    assert table["memory"].to_pylist() == [85520809984.0, float(2**53), None]
    with pytest.raises(ObserveError, match="read of host does not fit"):
        writing.conformed("host", {"read": ["12"]})


def test_a_table_without_rows_has_no_file(tmp_path: Path) -> None:
    writing.write_table(tmp_path, "marks", {"time": [START], "name": ["loss"], "value": [1.0]})
    path = writing.write_table(tmp_path, "marks", {})
    assert list(tmp_path.iterdir()) == []
    assert not path.exists()
    writing.write_meta(tmp_path, META)
    assert reading.open_step(tmp_path).table("marks").schema == layout.schema("marks")


@pytest.mark.parametrize("table", sorted(layout.TABLES))
def test_each_table_takes_rows_of_nulls_and_arrow(tmp_path: Path, table: str) -> None:
    schema = layout.schema(table)
    rows = pa.Table.from_arrays([pa.nulls(3, field.type) for field in schema], schema=schema)
    writing.write_table(tmp_path, table, rows)
    writing.write_meta(tmp_path, META)
    step = reading.open_step(tmp_path)
    assert step.table(table).equals(rows)
    again = writing.conformed(table, step.table(table))
    assert again.schema == schema


def test_pieces_with_other_dictionaries_are_one_table(tmp_path: Path) -> None:
    pieces = [
        writing.conformed("host", {"time": [START], "node": [name], "cpu": [number]})
        for number, name in enumerate(["a", "b", "c"])
    ]
    writing.write_pieces(tmp_path, "host", pieces)
    writing.write_table(tmp_path, "net", {"time": [START], "node": pa.chunked_array([pa.array(["x"])])})
    writing.write_meta(tmp_path, META)
    assert reading.open_step(tmp_path).table("host", ["node"])["node"].to_pylist() == ["a", "b", "c"]
    assert len(reading.open_step(tmp_path).table("host").group_by("node").aggregate([("cpu", "sum")])) == 3
    writing.write_table(tmp_path, "host", pa.concat_tables(pieces))
    assert reading.open_step(tmp_path).table("host", ["node"])["node"].to_pylist() == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("table", "rows", "what"),
    [
        ("cpus", {}, "no table 'cpus'"),
        ("gpu", {"watt": [1]}, "no column watt"),
        ("gpu", {"gpu": [-1]}, "gpu of gpu does not fit"),
        ("gpu", {"gpu": [0], "sm": [0.1, 0.2]}, "sm of gpu has 2 rows"),
        ("events", {"text": [object()]}, "text of events does not fit"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, table: str, rows: dict[str, list[object]], what: str) -> None:
    with pytest.raises(ObserveError, match=what):
        writing.write_table(tmp_path, table, rows)
    assert list(tmp_path.iterdir()) == []


def test_a_table_that_breaks_off_leaves_the_one_before(tmp_path: Path) -> None:
    good = writing.conformed("host", {"time": [START], "node": ["a"]})
    writing.write_pieces(tmp_path, "host", [good])

    def broken() -> Iterator[pa.Table]:
        yield good
        raise ObserveError("the spool is damaged")

    with pytest.raises(ObserveError, match="the spool is damaged"):
        writing.write_pieces(tmp_path, "host", broken())
    assert [path.name for path in tmp_path.iterdir()] == ["host.parquet"]


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(ObserveError, match=r"cannot write .*absent.*No such file"):
        writing.write_table(tmp_path / "absent", "host", {"time": [START]})
    with pytest.raises(ObserveError, match=r"cannot write .*absent.*No such file"):
        writing.write_meta(tmp_path / "absent", META)
    with pytest.raises(ObserveError, match="the layout has no walltime"):
        writing.write_meta(tmp_path, {**META, "walltime": 1})
    with pytest.raises(ObserveError, match="not JSON"):
        writing.write_meta(tmp_path, {**META, "name": float("nan")})


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "it is no JSON"),
        ("[" * 100_000, "it is no JSON"),
        ("[]", "does not say job, step and start"),
        (json.dumps({"job": 112, "step": "0", "start": 1, "version": 1}), "does not say job, step and start"),
        (json.dumps({"job": "1", "step": "0", "start": 1, "version": 2}), "is of version 2"),
        (json.dumps({"job": "1", "step": "0", "start": 1}), "is of version None"),
    ],
)
def test_a_damaged_meta_is_named(tmp_path: Path, text: str, what: str) -> None:
    (tmp_path / "meta.json").write_text(text)
    with pytest.raises(ObserveError, match=what):
        reading.open_step(tmp_path)


def test_damaged_tables_are_named(tmp_path: Path) -> None:
    with pytest.raises(ObserveError, match="No such file"):
        reading.open_step(tmp_path)
    writing.write_meta(tmp_path, META)
    (tmp_path / "gpu.parquet").write_bytes(b"PAR1 and no more")
    step = reading.open_step(tmp_path)
    with pytest.raises(ObserveError, match=r"cannot read .*gpu\.parquet"):
        step.table("gpu")
    with pytest.raises(ObserveError, match="no table 'cpus'"):
        step.table("cpus")
    with pytest.raises(ObserveError, match="no column watt"):
        step.table("gpu", ["watt"])


def test_a_file_of_an_older_writer_has_nulls(tmp_path: Path) -> None:
    writing.write_meta(tmp_path, META)
    pq.write_table(pa.table({"node": ["a", "b"]}), tmp_path / "host.parquet")
    table = reading.open_step(tmp_path).table("host")
    assert (table["node"].to_pylist(), table["cpu"].null_count) == (["a", "b"], 2)


def test_of_a_node_of_which_the_step_has_some_gpus_each_is_known_by_its_index() -> None:
    two, three = {"uuid": "c", "name": "A100", "gpu": 2}, {"uuid": "d", "name": "H100", "gpu": 3}
    meta = {"devices": {"n1": [two, three], "n2": [{"uuid": "a"}, 5], "n3": 5}}
    assert (device_of(meta, "n1", 2), device_of(meta, "n1", 3), device_of(meta, "n1", 0)) == (two, three, {})
    assert device_of(meta, "n2", 0) == {"uuid": "a"}
    for node, index in (("n2", 1), ("n2", 2), ("n3", 0), ("n4", 0)):
        assert device_of(meta, node, index) == {}
    assert device_of({}, "n1", 0) == {}
