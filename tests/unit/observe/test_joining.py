"""Marks that a user sent and events of the central store, joined with the data of a step."""

from __future__ import annotations

import gzip
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from piolet.base.errors import EventError, ObserveError
from piolet.central import marks as sending
from piolet.central.doors import RefusedError
from piolet.central.store.database import StoreError
from piolet.observe import bounded, joining, marks, reading
from piolet.observe.catalogue import PACKED, WHOLE, Row
from piolet.observe.joining import Happened, Told, home, of_step
from piolet.observe.keeping import Keeper
from piolet.observe.keepsettings import KeepConfig
from piolet.observe.marks import OUTPUT, Said
from piolet.observe.spool import Spool

from tests.unit.observe.test_keeping import START, Site

Make = Callable[..., Site]
UID = 1000  # whose steps are in the catalogue


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    """Makes sites, and closes what they have open."""
    sites: list[Site] = []

    def make(told: Happened | None = None, **config: Any) -> Site:
        site = Site(tmp_path, **config)
        sites.append(site)
        if told is not None:
            site.catalogue.close()
            config = {"findings": False, **config}
            site.keeper = Keeper(tmp_path, KeepConfig(directory=str(tmp_path), **config), lambda: site.now, told)
            site.catalogue = site.keeper.catalogue
            site.spool = Spool(site.catalogue)
        return site

    yield make
    for site in sites:
        site.catalogue.close()


def losses(many: int = 40, spike: int = 20, time: bool = True, **more: Any) -> list[Said]:
    """Return losses that jump, one each 10 s."""
    return [
        Said("loss", 2.0 - 0.01 * at + (6.0 if at >= spike else 0.0), START + 10 * at if time else None, OUTPUT, **more)
        for at in range(many)
    ]


def send(site: Site, said: Sequence[Said], job: int = 112, uid: int = UID) -> dict[str, Any]:
    """Send marks as a user, at the site's time."""
    told = sending.sent(uid, str(job), marks.packed(said)[0]).keep(site.catalogue, sending.Shares())
    os.utime(joining.place(site.root, str(job), uid), (site.now, site.now))
    return told


@pytest.mark.parametrize(
    ("steps", "which"),
    [
        ([("batch", 0), ("extern", 0), ("0", 0)], "0"),
        ([("batch", 0), ("extern", 0), ("0", 0), ("1", 0)], "batch"),
        ([("0", 0), ("1", 0), ("0", 1)], "0"),
        ([("extern", 0), ("0", 0), ("1", 0)], ""),
        ([], ""),
    ],
)
def test_of_which_step_marks_are_that_say_none(steps: list[tuple[str, int]], which: str) -> None:
    assert home(steps) == which


def test_marks_are_of_the_steps_that_ran_then() -> None:
    timed, bare = Said("loss", 1.0, 150.0, OUTPUT), Said("loss", 2.0, None, OUTPUT)
    named, late = Said("loss", 3.0, 150.0, "command", step="1"), Said("loss", 4.0, 900.0, OUTPUT)
    all_of_them = [timed, bare, named, late]
    assert of_step(all_of_them, "0", "batch", 100.0, 200.0) == [timed]
    assert of_step(all_of_them, "1", "batch", 100.0, 200.0) == [timed, named]
    assert of_step(all_of_them, "batch", "batch", 0.0, 1000.0) == [timed, bare, late]
    assert of_step(all_of_them, "0", "0", 100.0, 200.0) == [timed, bare]
    assert of_step(all_of_them, "extern", "batch", 0.0, 1000.0) == []


@pytest.mark.parametrize("time", [True, False])
def test_a_detector_sees_losses_that_were_sent_while_the_step_ran(made: Make, tmp_path: Path, time: bool) -> None:
    """With times and, as most programs print them, without."""
    site = made()
    site.came(112, part=slice(0, 30))
    assert send(site, losses(time=time)) == {"steps": ["112.0"], "marks": 40}
    site.came(112)
    site.later(1)
    directory = site.root / site.row(112).path
    table = reading.open_step(directory).table("marks")
    assert len(table) == 40 and set(table["origin"].to_pylist()) == {OUTPUT}
    said = {one.detector: one for one in bounded.find(directory)}
    found = said["loss_spike"].findings[0]
    assert "loss rose" in found.text and (found.start is not None) == time
    assert not list(joining.sent(tmp_path)), "the file goes when no step is open"


def test_marks_that_come_later_are_joined_and_judged(made: Make, tmp_path: Path) -> None:
    site = made(findings=True)
    site.came(112)
    site.later(0.01)
    directory = site.root / site.row(112).path
    assert site.row(112).state == WHOLE
    states = {row["detector"]: row["state"] for row in reading.open_step(directory).table("judged").to_pylist()}
    assert states["loss_spike"] == "unknown"
    site.now += 60
    send(site, losses())
    site.now += 1
    site.keeper.turn()
    step = reading.open_step(directory)
    assert {row["detector"]: row["state"] for row in step.table("judged").to_pylist()}["loss_spike"] == "found"
    assert "loss_spike" in step.table("findings")["detector"].to_pylist()
    assert not list(joining.sent(tmp_path))
    assert site.row(112).state == WHOLE


def test_who_sends_again_and_again_does_not_keep_the_keeper_busy(made: Make, tmp_path: Path) -> None:
    site = made()
    site.came(112)
    site.later(0.01)
    site.now += 60
    directory = site.root / site.row(112).path
    for number in (10, 20):
        send(site, losses(number))
        site.now += 1
        site.keeper.turn()
    assert len(reading.open_step(directory).table("marks")) == 10, "the second time comes too soon"
    assert list(joining.sent(tmp_path))
    site.now += 60
    site.keeper.turn()
    assert len(reading.open_step(directory).table("marks")) == 20 and not list(joining.sent(tmp_path))


def test_marks_that_cannot_be_written_are_not_lost(made: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = made()
    site.came(112)
    site.later(0.01)
    site.now += 60
    send(site, losses())

    def full(*_: object) -> bool:
        raise ObserveError("no space is left")

    with monkeypatch.context() as patched:
        patched.setattr(joining, "join", full)
        for _ in range(3):
            site.now += 60
            site.keeper.turn()
    assert list(joining.sent(tmp_path))
    site.now += 60
    site.keeper.turn()
    assert len(reading.open_step(site.root / site.row(112).path).table("marks")) == 40


def test_nobody_says_anything_of_another_s_job(made: Make, tmp_path: Path) -> None:
    site = made()
    site.came(112)
    for uid, job in ((UID + 1, 112), (UID, 113)):
        with pytest.raises(EventError, match="no node told of it"):
            send(site, losses(), job, uid)
    with pytest.raises(RefusedError, match="from users"):
        sending.sent(None, "112", marks.packed(losses())[0])
    assert not list(joining.sent(tmp_path))
    site.later(0.01)
    site.catalogue.change(site.row(112), packed=f"{PACKED}/2026-09-21.zip")
    with pytest.raises(EventError, match="thinned or packed"):
        send(site, losses())


@pytest.mark.parametrize("job", ["", "0", "../1", "1.0", "1" * 11, "-1"])
def test_a_job_is_a_number(job: str) -> None:
    with pytest.raises(EventError, match="by its number"):
        sending.sent(UID, job, marks.packed(losses())[0])


def test_what_is_sent_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    line = marks.text_of(losses(1))
    for body in (b"", b"\x1f\x8b", gzip.compress(bytes(marks.SENT_BYTES + 1)), gzip.compress(line)[:-4]):
        with pytest.raises(EventError):
            sending.sent(UID, "112", body)
    odd = b'{"name":"a b"}\n[]\n{"name":"loss","value":"nan","time":null,"origin":"output"}\n' + line
    (bad, good) = sending.sent(UID, "112", gzip.compress(odd)).found
    assert math.isnan(bad.value) and good == losses(1)[0]
    monkeypatch.setattr(marks, "SENT_MOST", 100)
    body, left = marks.packed(losses(150))
    assert left == 50 and len(sending.sent(UID, "112", body).found) == 100
    with pytest.raises(EventError, match="100 marks at most"):
        sending.sent(UID, "112", gzip.compress(marks.text_of(losses(101))))


def test_no_user_sends_without_end() -> None:
    """Tasks of an array may all send at once; who goes on is refused, and others are not."""
    now = 100.0
    shares = sending.Shares(lambda: now)
    for _ in range(500):
        shares.take(UID, 5_000)
    with pytest.raises(StoreError, match="too many marks"):
        for _ in range(20):
            shares.take(UID, 5_000)
    shares.take(UID + 1, sending.BURST // 2)
    now += 10
    shares.take(UID, 1 << 20)
    with pytest.raises(StoreError):
        shares.take(UID, 16 << 20)
    now += 3600
    shares.take(UID, 16 << 20)
    assert len(shares._used) == 1


def test_a_node_that_the_step_does_not_have_is_none() -> None:
    rows = joining.table(losses(1, node="node1") + losses(1, node="../../etc"), ["node1"]).to_pylist()
    assert sorted(str(row["node"]) for row in rows) == ["None", "node1"]


class Store:
    """Tells of events, and is asked for them again."""

    def __init__(self) -> None:
        self.kinds = ["gpu.xid"]
        self.left = ["of node9 nothing"]
        self.asked: list[float] = []

    def __call__(self, row: Row, nodes: Sequence[str], begin: float, end: float) -> Told:
        """Tell what there is."""
        self.asked.append(end)
        many = len(self.kinds)
        rows: dict[str, list[Any]] = {
            "time": [round(begin * 1e9)] * many, "node": [nodes[0]] * many, "kind": self.kinds,
            "source": ["kernel"] * many, "severity": ["error"] * many, "text": ["Xid 79"] * many,
        }  # fmt: skip
        return Told(rows, self.left)


def test_events_are_in_the_tables_and_asked_for_once_more(made: Make) -> None:
    store = Store()
    site = made(store)
    site.came(112)
    site.now += 100
    site.keeper.turn()
    directory = site.root / site.row(112).path

    def joined() -> tuple[list[str], list[str]]:
        step = reading.open_step(directory)
        told = [row["reason"] for row in step.quality.to_pylist() if row["source"] == "events"]
        return step.table("events")["kind"].to_pylist(), told

    assert joined() == (["gpu.xid"], ["of node9 nothing"])
    store.kinds, store.left = ["gpu.xid", "slurm.job_end"], []
    site.keeper.turn()
    assert joined()[0] == ["gpu.xid"]
    for _ in range(3):  # minutes later, and only once
        site.now += 340
        site.keeper.turn()
    assert joined() == (["gpu.xid", "slurm.job_end"], [])
    assert len(store.asked) == 2


def test_findings_of_a_step_that_runs_are_those_of_its_data_so_far(made: Make) -> None:
    """And when its data no longer say so, they are gone."""
    site = made(findings=True)
    site.came(112, part=slice(0, 45))
    send(site, losses())
    site.now += 400
    site.keeper.turn()
    row = site.row(112)
    assert row.state == "open"
    directory = site.root / row.path
    assert "loss_spike" in reading.open_step(directory).table("findings")["detector"].to_pylist()
    send(site, losses(spike=99))
    site.came(112)
    site.later(1)
    step = reading.open_step(directory)
    assert site.row(112).state == WHOLE and len(step.table("judged"))
    assert "loss_spike" not in step.table("findings")["detector"].to_pylist()
