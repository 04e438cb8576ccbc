"""What time does to data of steps: nothing is removed or thinned without a word of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pytest
from piolet.events.envelope import encode
from piolet.observe import finishing, layout, packed, reading, rollup, thinning, writing
from piolet.observe.catalogue import GONE, OPEN, ROLLED, THINNED, WHOLE, Row
from piolet.observe.keeping import Keeper
from piolet.observe.keepsettings import KeepConfig
from piolet.observe.spool import Batch, Line, Spool

from tests.support.frames import whole

START = 1_790_000_000.0
DAY = 86400.0
ALL = slice(None)


class Site:
    """A root with a keeper, in a time of its own."""

    def __init__(self, root: Path, **config: Any) -> None:
        self.now = START
        self.root = root
        config = {"findings": False, **config}
        self.keeper = Keeper(root, KeepConfig(directory=str(root), **config), lambda: self.now)
        self.catalogue = self.keeper.catalogue
        self.spool = Spool(self.catalogue)

    def came(self, job: int, frames: int = 60, start: float = START, part: slice = ALL) -> None:
        """Have a step of so many frames come from one node."""
        epoch = f"{job:016x}"
        lines = [
            Line(
                one.epoch, one.seq, str(job), "0", 0, 1000, one.time, encode(one), one.body.get("began"),
                one.kind == "observe.end",
            )
            for one in whole("node1", start, frames, epoch, job=job)
        ][part]  # fmt: skip
        self.now = max(self.now, lines[-1].time)
        self.spool.append([Batch("node1", lines, self.now)])

    def later(self, days: float) -> None:
        """Let time pass, and the keeper work."""
        self.now += days * DAY
        self.keeper.turn()

    def row(self, job: int) -> Row:
        """Return the one row of a job."""
        (found,) = self.catalogue.rows("job = ?", str(job))
        return found

    def kept(self, job: int) -> list[str]:
        """Return what the step's quality says of what was done to it."""
        quality = reading.open_step(self.root / self.row(job).path).quality
        return [row["reason"] for row in quality.to_pylist() if row["source"] == thinning.SOURCE]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A site that packs nothing."""
    made = Site(tmp_path, pack_min=0)
    yield made
    made.catalogue.close()


def test_a_step_grows_old(site: Site) -> None:
    site.came(1, frames=90)
    site.later(0.01)
    assert site.row(1).state == WHOLE
    before = rollup.lines(reading.open_step(site.root / site.row(1).path), "power")
    energy = total(site, "power")
    site.later(31)
    assert site.row(1).state == THINNED
    step = reading.open_step(site.root / site.row(1).path)
    assert len(step.table("gpu")) == 4 * 30 and set(step.table("gpu")["span"].to_pylist()) == {30.0}
    assert total(site, "power") == pytest.approx(energy, rel=1e-3)
    assert len(step.table("host")) == 30
    (why,) = site.kept(1)
    assert why.startswith("samples are kept as means over 30 s since 2026-")
    site.later(335)
    assert site.row(1).state == ROLLED
    step = reading.open_step(site.root / site.row(1).path)
    assert len(step.table("gpu")) == 0 and len(site.kept(1)) == 2
    after = rollup.lines(step, "power")
    assert np.array_equal(after.mean, before.mean, equal_nan=True)
    site.later(365)
    row = site.row(1)
    assert (row.state, row.size) == (GONE, 0) and not (site.root / row.path).exists()
    site.later(1)
    assert site.row(1).state == GONE


def total(site: Site, quantity: str) -> float:
    """Return the integral of a quantity over all samples of step 1."""
    table = reading.open_step(site.root / site.row(1).path).table("gpu")
    return float(np.nansum(table[quantity].to_numpy() * table["span"].to_numpy()))


def test_thinning_keeps_counters_masks_and_what_is_missing(tmp_path: Path) -> None:
    rows = {
        "time": [round((START + at) * 1e9) for at in (10, 20, 30, 40)], "span": [10.0, 10.0, 5.0, 10.0],
        "node": ["a"] * 4, "gpu": [0] * 4, "uuid": ["GPU-1"] * 4, "sm": [0.1, None, 0.4, None],
        "energy": [100.0, 200.0, 300.0, 400.0], "clock_events": [1.0, 4.0, 4.0, 0.0], "xid": [0.0, 79.0, 0.0, None],
    }  # fmt: skip
    writing.write_meta(tmp_path, {"job": "1", "step": "0", "start": round(START * 1e9)})
    writing.write_table(tmp_path, "gpu", rows)
    thinning.thin(tmp_path, 30, START)
    first, second = reading.open_step(tmp_path).table("gpu").to_pylist()
    assert first["span"] == 25.0 and second["span"] == 10.0
    assert first["sm"] == pytest.approx((0.1 * 10 + 0.4 * 5) / 15) and second["sm"] is None
    assert (first["energy"], first["clock_events"], first["xid"]) == (300.0, 5.0, 79.0)
    assert (second["energy"], second["xid"]) == (400.0, None)
    assert first["uuid"] == "GPU-1" and first["time"].timestamp() == START + 30


def test_short_steps_of_a_day_are_put_together(tmp_path: Path) -> None:
    site = Site(tmp_path, pack_min=10)
    for job in (1, 2):
        site.came(job, frames=3)
    site.came(3, frames=90)
    site.later(0.01)
    before = (site.root / site.row(1).path / "gpu.parquet").read_bytes()
    site.later(8)
    assert [bool(site.row(job).packed) for job in (1, 2, 3)] == [True, True, False]
    row = site.row(1)
    assert not (site.root / row.path).exists()
    archive = site.root / row.packed
    assert packed.member(archive, f"{row.directory}/gpu.parquet") == before
    assert packed.members(archive, row.directory).keys() >= {"meta.json", "gpu.parquet", "rollup.parquet"}
    step = reading.open_packed(archive, row.directory)
    assert step.name == "1.0" and len(step.table("gpu")) == 4 * 3
    with pytest.raises(FileNotFoundError):
        packed.member(archive, "1.0/absent")
    site.came(4, frames=3, start=START + 60)  # another one of that day, found later
    site.later(0.01)
    site.later(8)
    assert site.row(4).packed == row.packed
    assert packed.member(archive, f"{row.directory}/gpu.parquet") == before
    site.later(800)
    assert site.row(4).state == GONE and not archive.exists()
    site.catalogue.close()


def test_a_quota_is_kept_by_what_is_oldest(tmp_path: Path) -> None:
    site = Site(tmp_path, pack_min=0, quota_gib=1)
    for job in (1, 2):
        site.came(job, frames=90, start=START + job * 1000)
        site.later(0.01)
    newest = site.row(2).size
    site.catalogue.change(site.row(1), size=1 << 30)  # as if it were large
    site.keeper.chores()
    assert (site.row(1).state, site.row(2).state) == (THINNED, WHOLE)
    assert site.row(2).size == newest and site.keeper.taken() < 1 << 30
    site.catalogue.close()


def test_what_comes_later_than_a_removal_is_a_step_of_its_own(site: Site) -> None:
    site.came(1, frames=6, part=slice(0, 4))
    site.later(0.1)
    site.catalogue.change(site.row(1), state=ROLLED)
    site.came(1, frames=6, part=slice(4, None))
    found = site.catalogue.rows("job = '1'")
    assert sorted(row.state for row in found) == [OPEN, ROLLED] and len({row.path for row in found}) == 2


def test_a_running_step_has_a_directory_that_grows(site: Site) -> None:
    site.came(1, frames=200, part=slice(0, 40))
    site.later(0.01)
    step = reading.open_step(site.root / site.row(1).path)
    assert site.row(1).state == OPEN and len(step.table("host")) == 39
    assert [row["reason"] for row in step.quality.to_pylist() if row["source"] == "samples"] == []
    assert "end" not in step.meta
    site.came(1, frames=200, part=slice(40, None))
    site.later(0.01)
    step = reading.open_step(site.root / site.row(1).path)
    assert site.row(1).state == WHOLE and len(step.table("host")) == 200
    assert step.meta["end"] == round((START + 2000) * 1e9)


def test_how_a_job_ended_is_said_later(site: Site) -> None:
    site.came(1, frames=6)
    site.later(0.01)
    said = {"state": "TIMEOUT", "exit": {"status": 0, "signal": 15}, "nodes": ["node1"], "partition": "debug"}
    site.catalogue.set_jobs({"1": said}, site.now)
    site.keeper.chores()
    meta = reading.open_step(site.root / site.row(1).path).meta
    assert (meta["state"], meta["exit"]["signal"]) == ("TIMEOUT", 15)


def test_a_damaged_step_does_not_stop_the_others(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    site.came(1, frames=6)
    site.came(2, frames=6)
    (site.root / "spool" / str(site.row(1).id) / "000001.frames").write_bytes(b"nonsense" * 10)
    site.later(0.01)
    site.keeper.turn()
    assert (site.row(1).state, site.row(2).state) == (OPEN, WHOLE)
    assert len([one for one in caplog.records if "1.0 of uid 1000" in one.getMessage()]) == 1


def test_all_tables_of_a_step_come_along(site: Site) -> None:
    """What stands beside samples is kept over a merge and over thinning."""
    site.came(1, frames=90)
    site.later(0.01)
    directory = site.root / site.row(1).path
    writing.write_table(directory, "marks", {"time": [pa.scalar(0)], "name": ["loss"], "value": [1.0]})
    site.later(31)
    assert reading.open_step(directory).table("marks")["name"].to_pylist() == ["loss"]
    assert set(layout.TABLES) > {"marks"} and finishing.FINAL


def test_detectors_look_at_a_step_that_has_ended_and_again_when_more_came(tmp_path: Path) -> None:
    site = Site(tmp_path, pack_min=0, findings=True, detectors=str(tmp_path / "none"))
    site.came(7)
    site.later(1)
    step = reading.open_step(tmp_path / site.row(7).path)
    judged = {row["detector"]: row for row in step.table("judged").to_pylist()}
    assert len(judged) == 14
    assert judged["loss_spike"]["state"] == "unknown" and "no loss" in judged["loss_spike"]["reason"]
    site.catalogue.close()
