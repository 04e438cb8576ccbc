"""The data set on disk, and what is made of it: Parquet, comparisons, exports, pages."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest
from piolet.api import GPU_QUANTITIES
from piolet.base.errors import ScoreError
from piolet.samples import dataset
from piolet.samples.dataset import Dataset, finish, open_dataset
from piolet.score import calibrate, compare, export, peaks
from piolet.score.report import figures, html, screen
from piolet.score.summary import summarise

from tests.score.generate import generate
from tests.score.generate import one as generate_one

Simulate = Callable[..., Dataset]
SCRIPT = "gpu\nload matmul 3\nload copy 2\ngpu\nload small 100\n"


def test_parquet_says_the_same_as_the_journal(simulate: Simulate) -> None:
    """To the precision that is kept; and the journal is gone."""
    data = simulate(SCRIPT, 20)
    one = summarise(data)
    path = finish(data.nodes[0].path)
    assert not data.nodes[0].path.exists() and path.exists()
    other = summarise(open_dataset(data.directory))
    for name in ("value", "coverage", "compute", "memory", "idle", "narrow", "stalled"):
        assert getattr(other.score, name) == pytest.approx(getattr(one.score, name), abs=1e-4)
    assert other.energy.value == pytest.approx(one.energy.value, abs=1) and other.simulated == "scripted GPUs"


def test_columns_carry_units_and_meanings(simulate: Simulate) -> None:
    """Any reader of Parquet finds them, and the facts of the step."""
    path = finish(simulate(SCRIPT, 5).nodes[0].path)
    schema = pq.read_schema(path)
    for quantity in GPU_QUANTITIES:
        assert schema.field(quantity.name).metadata == {
            b"unit": quantity.unit.encode(),
            b"text": quantity.text.encode(),
        }
    facts = json.loads(schema.metadata[b"piolet"])
    assert facts["header"]["simulated"] == "scripted GPUs" and facts["complete"]
    table = pq.read_table(path)
    assert table["memory_used"].null_count > 0  # read once a second: nulls between, no NaN
    assert not np.isnan(table["memory_used"].drop_null().to_numpy()).any()


def test_a_file_that_cannot_be_finished_stays_a_journal(simulate: Simulate, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing half-written is left."""
    data = simulate(SCRIPT, 5)

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(ScoreError, match="No space left on device"):
        finish(data.nodes[0].path)
    assert sorted(p.name for p in data.directory.iterdir()) == ["node.journal", "script"]


def test_rubbish_is_refused(tmp_path: Path) -> None:
    """In one sentence each."""
    with pytest.raises(ScoreError, match="there is no directory"):
        open_dataset(tmp_path / "absent")
    with pytest.raises(ScoreError, match="holds no samples"):
        open_dataset(tmp_path)
    (tmp_path / "a.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(ScoreError, match="is no file of a Piolet data set"):
        open_dataset(tmp_path)


@pytest.mark.parametrize("value", [0.0, 1e-5, 0.12345, 1.0])
def test_rounding_keeps_shares_to_a_hundredth_of_a_percent(value: float) -> None:
    """And rates to 13 bits."""
    assert dataset.rounded(np.array([value]), "1")[0] == pytest.approx(value, abs=5.1e-5)
    assert dataset.rounded(np.array([value * 1e12]), "B/s")[0] == pytest.approx(value * 1e12, rel=1e-4)


def test_many_nodes_are_one_step(tmp_path: Path) -> None:
    """The slow node is found, and rows of the heat map are nodes beyond 256 GPUs."""
    generate(tmp_path, 70, 4, 600, 10)
    got = summarise(open_dataset(tmp_path))
    assert got.score.gpus == 280 and got.score.coverage == pytest.approx(1)
    assert got.slowest.startswith("node0007") and got.nodes[7].s == min(n.s for n in got.nodes if n.s is not None)
    page = html.render(got)
    assert len(page) < 3_000_000 and page.count("<td") > 280 * 5
    assert {name for name, *_ in figures.figures(got)} == {
        *("waterfall", "saturation", "activity", "heat", "power", "host")
    }


@pytest.mark.parametrize("place", [(Path, "glob"), (dataset, "known_of")])
def test_a_node_that_finishes_while_it_is_read_is_not_lost(
    simulate: Simulate, monkeypatch: pytest.MonkeyPatch, place: tuple[Any, str]
) -> None:
    """Whether its journal goes after the directory was listed, when its facts are read, or later."""
    data = simulate(SCRIPT, 10)
    before = getattr(*place)

    def finish_meanwhile(*arguments: Any) -> Any:
        monkeypatch.undo()
        found = list(before(*arguments)) if place[0] is Path else None
        finish(data.nodes[0].path)
        return before(*arguments) if found is None else found

    monkeypatch.setattr(*place, finish_meanwhile)
    assert [node.path.name for node in open_dataset(data.directory).nodes] == ["node.parquet"]
    assert data.is_stale and summarise(data).score.coverage > 0.9


def test_nodes_without_samples_are_counted(simulate: Simulate) -> None:
    """The step's number of nodes is in every node's header."""
    data = simulate(SCRIPT, 10)
    data.nodes[0].facts.header["nodes"] = 3
    got = summarise(data)
    assert got.wanted == 3 and any("2 of 3 nodes have no samples" in line for line in got.quality)
    assert "on 1 of 3 nodes" in screen.render(got) and "1 of 3 nodes" in html.render(got)


def test_a_node_that_ended_early_counts_until_the_end(tmp_path: Path) -> None:
    """Of its second half nothing is known."""
    generate_one((tmp_path, 0, 4, 600, 10))
    generate_one((tmp_path, 1, 4, 300, 10))
    score = summarise(open_dataset(tmp_path)).score
    assert score.coverage == pytest.approx(0.75) and score.is_range


def test_a_comparison_gives_ranges_where_too_little_is_known(simulate: Simulate) -> None:
    """As every other place does."""
    data = simulate(SCRIPT, 20)
    data.nodes[0].facts.end += 10 * 10**9
    got = summarise(data)
    assert got.score.is_range
    (line,) = re.findall("^saturation.*", compare.render(got, got, compare.compare(got, got)), re.MULTILINE)
    assert line.count(" to ") == 2 and line.count(f"{100 * got.score.low:.0f} %") == 2


def test_a_comparison_tells_a_difference_from_noise(libraries: Path, tmp_path: Path) -> None:
    """Two runs of the same load, and one of another."""
    from tests.score.simulation import simulate

    loads = ("matmul 100 80 1.3", "matmul 100 80 1.3", "matmul 100 40 1.3")
    sets = [simulate(libraries, tmp_path / str(i), f"gpu\nload {load}\n", 60) for i, load in enumerate(loads)]
    a, b, c = (summarise(data) for data in sets)
    same, other = compare.compare(a, b), compare.compare(a, c)
    assert not same.is_clear and other.is_clear
    assert other.difference == pytest.approx(-0.36, abs=0.02) and other.low < -0.36 < other.high
    assert "this may be chance" in compare.render(a, b, same)
    with pytest.raises(ScoreError, match="too few samples"):
        compare.compare(a, summarise(simulate(libraries, tmp_path / "x", "gpu\nload idle 9\n", 5, 0.1, "nvml")))


def test_a_comparison_says_what_else_differs(libraries: Path, tmp_path: Path) -> None:
    """Number of GPUs and length: an interval says nothing of those."""
    from tests.score.simulation import simulate

    a = summarise(simulate(libraries, tmp_path / "a", "gpu\nload matmul 100\n" * 4, 60))
    b = summarise(simulate(libraries, tmp_path / "b", "gpu\nload matmul 100\n", 20, 0.1, "dcgm"))
    found = compare.compare(a, b)
    size, length, source = found.unlike
    assert size == "A has at least 4 GPUs, B at least 1 GPU" and source == "A was measured with gpm, B with dcgm"
    assert length == "A took 60.0 s, B 20.0 s"
    text = compare.render(a, b, found)
    assert f"warning: {length}\n" in text
    assert compare.compare(a, a).unlike == () and "warning" not in compare.render(a, a, compare.compare(a, a))
    blank = summarise(simulate(libraries, tmp_path / "c", "gpu\nload matmul 100\nblank 5 3\n" * 4, 60))
    assert compare.compare(a, blank).unlike == (
        "the saturation of B is not confirmed: tensor activity is missing, which is not zero",
    )


@pytest.mark.parametrize(("given", "said"), [(2, "2 GPUs"), (3, "2 to 3 GPUs"), (None, "at least 2 GPUs")])
def test_the_size_is_slurms_and_what_was_seen(simulate: Simulate, given: int | None, said: str) -> None:
    """Where both say the same it is confirmed."""
    data = simulate(SCRIPT, 5)
    data.nodes[0].facts.header["allocated"] = given
    got = summarise(data)
    assert f"size    {said} on 1 node" in screen.render(got) and got.size.value == (2 if given == 2 else None)


def test_a_gpu_that_hung_is_counted_and_named(tmp_path: Path) -> None:
    """Two nodes with two GPUs each, one of which hangs: the range is a quarter wide, the other node is unharmed."""
    for node in (0, 1):
        generate_one((tmp_path, node, 2, 600, 10))
    data = open_dataset(tmp_path)
    hung = {"uuid": "GPU-hung", "name": "NVIDIA H100 80GB HBM3", "memory": 0, "power_limit": 0.0, "mig": False}
    data.nodes[1].facts.devices.append(hung | {"unseen": "its driver did not answer within 5 s"})
    data.nodes[1].facts.header["allocated"] = 3
    got = summarise(data)
    assert got.size.value == 5 and got.score.coverage == pytest.approx(0.8)
    assert got.saturation.low == pytest.approx(got.score.low) and "GPU-hung" in got.saturation.reason
    assert [node.coverage for node in got.nodes] == pytest.approx([1, 2 / 3])
    assert got.energy.high is None and got.utilisation.value is None
    assert "node0001 GPU 2 (GPU-hung) was not measured: its driver did not answer within 5 s" in got.quality


def test_a_gpu_that_no_source_could_read_is_said_once(libraries: Path, tmp_path: Path) -> None:
    """As parts of GPUs that Slurm gives by number: the step was not too short, and it is no lack of counters."""
    from tests.score.simulation import simulate

    data = simulate(libraries, tmp_path, "gpu\n", 5, 1, "host")
    (node,) = data.nodes
    device = {"uuid": "/dev/nvidia0", "name": "", "memory": 0, "power_limit": 0.0, "mig": False}
    node.facts.devices.append(device | {"unseen": "no source could read it"})
    node.facts.header["allocated"] = 1
    got = summarise(data)
    said = [line for line in got.quality if "measured" in line or "sample was" in line or "counters" in line]
    assert said == ["node GPU 0 (/dev/nvidia0) was not measured: no source could read it"]


def test_the_next_samplers_gpus_are_found_by_uuid(tmp_path: Path) -> None:
    """After one has hung, what was GPU 1 is the new sampler's GPU 0."""
    from piolet.api import Reading
    from piolet.samples import journal

    def header(start: int, *uuids: str, unseen: str = "") -> bytes:
        devices = [{"uuid": uuid, "name": "H100", "memory": 0, "power_limit": 0.0, "mig": False} for uuid in uuids]
        devices += [devices[0] | {"uuid": unseen, "unseen": "hangs"}] if unseen else []
        content = {"version": 1, "node": "n", "job": "1", "step": "0", "start": start, "origin": 0, "devices": devices}
        return journal.json_frame("H", content | {"gpu_columns": ["sm"], "host_columns": ["cpu"]})

    pack = journal.Packer("G", ["sm"])
    rows = [pack.pack(Reading(device, 10**9, 1.0, (value,)), (0,)) for device, value in ((0, 0.1), (1, 0.2))]
    again = pack.frame([pack.pack(Reading(0, 2 * 10**9, 1.0, (0.3,)), (0,))])
    path = tmp_path / "n.journal"
    path.write_bytes(header(0, "a", "b") + pack.frame(rows) + header(10**9, "b", unseen="a") + again)
    (node,) = open_dataset(tmp_path).nodes
    assert [(d["uuid"], d.get("unseen")) for d in node.facts.devices] == [("a", "hangs"), ("b", None)]
    (chunk,) = node.chunks(["sm"])
    assert list(zip(chunk["device"], chunk["sm"], strict=True)) == [(0, 0.1), (1, 0.2), (1, 0.3)]


def test_exports(simulate: Simulate) -> None:
    """CSV reads back, JSON is JSON, OpenMetrics has its end and its labels."""
    data = simulate(SCRIPT, 5)
    got = summarise(data)
    out = io.StringIO()
    export.to_csv(data, out)
    rows = list(csv.DictReader(io.StringIO(out.getvalue())))
    assert len(rows) == got.view.rows and {row["simulated"] for row in rows} == {"scripted GPUs"}
    assert float(rows[0]["tensor"]) == pytest.approx(0.9) and "power [W]" in rows[0]
    assert json.loads(export.to_json(got))["score"]["gpus"] == 2
    text = export.to_openmetrics(got)
    assert text.endswith("\n# EOF\n") and 'gpu="1"' in text
    line = re.compile(r'[a-z_]+\{([a-z]+="[^"]*",?)+\} -?[0-9.e+-]+')
    assert all(each.startswith("# ") or line.fullmatch(each) for each in text.splitlines())


def test_calibration(simulate: Simulate) -> None:
    """eta is what a saturating load reached; simulated figures are refused unless asked for."""
    data = simulate("gpu\nload matmul 100\n", 20)
    with pytest.raises(ScoreError, match="is simulated"):
        calibrate.calibrate([data])
    found = calibrate.calibrate([data], simulated_too=True)
    (model,) = found
    assert found[model].eta_tensor == pytest.approx(0.9) and found[model].eta_dram == 1
    read = peaks.from_json(peaks.to_json(found), "x.json")
    assert summarise(data, read).score.value == pytest.approx(1.0)
    for text in ("[]", "{", '{"H100": {"eta_tensor": 2}}', '{"H100": {"eta_magic": 1}}', '{"H100": 1}'):
        with pytest.raises(ScoreError, match=r"x\.json"):
            peaks.from_json(text, "x.json")


def test_the_documented_query_works_for_every_node_name(tmp_path: Path) -> None:
    """With and without digits, and with names that look like those of the host's files."""
    duckdb: Any = pytest.importorskip("duckdb", reason="duckdb is not installed")
    for number, name in enumerate(("node1", "login", "host", "parquet")):
        (tmp_path / name).mkdir()
        generate_one((tmp_path / name, number, 2, 600, 10))
        for path in (tmp_path / name).iterdir():
            path.rename(tmp_path / path.name.replace(f"node{number:04}", name))
        (tmp_path / name).rmdir()
    text = (Path(__file__).parents[2] / "docs" / "score.md").read_text("utf-8")
    (query,) = re.findall(r"```sql\n(.*?)```", text, re.DOTALL)
    rows = duckdb.sql(query.replace("DIR", str(tmp_path))).fetchall()
    assert sorted((node, gpu) for node, gpu, *_ in rows) == [(f"node{n:04}", gpu) for n in range(4) for gpu in (0, 1)]
    assert all(0.4 < tensor < 0.7 for _, _, tensor, *_ in rows)
