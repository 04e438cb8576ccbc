"""Running detectors: what they say is checked, what they raise is told, and a process of their own bounds them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from piolet.api import CannotTell, Detector, Finding
from piolet.base.errors import ObserveError
from piolet.observe import bounded, finding, reading, sitefiles, writing
from piolet.observe.finding import FAILED, FOUND, NOTHING, UNKNOWN

from tests.scale.findings import grid_of
from tests.simulators import runs

GOOD = Finding(1.0, "it is so", "do this")


def saying(result: Callable[[], Any]) -> Detector:
    class Made(Detector):
        name, version, unit = "made", 3, "s"

        def find(self, step: Any) -> Any:
            return result()

    return Made()


def raised(error: BaseException) -> Callable[[], Any]:
    def result() -> Any:
        raise error

    return result


@pytest.mark.parametrize(
    "result, state, word",
    [
        (lambda: [GOOD], FOUND, ""),
        (list, NOTHING, ""),
        (raised(CannotTell("there is no clock")), UNKNOWN, "there is no clock"),
        (raised(ZeroDivisionError("division by zero")), FAILED, "ZeroDivisionError"),
        (raised(MemoryError()), FAILED, "memory"),
        (lambda: None, FAILED, "TypeError"),
        (lambda: ["all is lost"], FAILED, "not a Finding"),
        (lambda: [Finding(float("nan"), "x", "y")], FAILED, "no number"),
        (lambda: [Finding(1.0, "", "y")], FAILED, "text and an advice"),
        (lambda: [Finding(1.0, "x" * 601, "y")], FAILED, "600"),
        (lambda: [Finding(1.0, "x", "y", confidence=1.5)], FAILED, "between 0 and 1"),
        (lambda: [Finding(1.0, "x", "y", start=1.5)], FAILED, "nanoseconds"),  # type: ignore[arg-type]
        (lambda: [Finding(1.0, "x", "y", evidence={"all": "e" * 5000})], FAILED, "evidence"),
        (lambda: [Finding(1.0, "x", "y", evidence={"step": object()})], FAILED, "TypeError"),
    ],
)
def test_what_a_detector_says_is_one_of_four_things(result: Callable[[], Any], state: str, word: str) -> None:
    one = finding.judged(saying(result), grid_of(runs.make(1)))
    assert (one.state, one.detector, one.version) == (state, "made", 3)
    assert word in one.reason


def test_findings_without_end_are_cut_off() -> None:
    def forever() -> Any:
        while True:
            yield GOOD

    assert len(finding.judged(saying(forever), grid_of(runs.make(1))).findings) == finding.MOST


def test_findings_and_what_could_not_be_told_are_tables_of_the_layout(tmp_path: Path) -> None:
    step = kept(tmp_path, "throttling")
    judge = bounded.Judge(str(tmp_path / "none"))
    said = judge.keep(step)
    judge.rest()
    assert {one.detector for one in said} == set(finding.OWN)
    data = reading.open_step(step)
    table = data.table("findings").to_pylist()
    mine = next(row for row in table if row["detector"] == "throttling")
    assert mine["unit"] == "1" and mine["effect"] > 0.02 and mine["advice"] and mine["start"] < mine["end"]
    assert {row["detector"] for row in data.table("judged").to_pylist()} == set(finding.OWN)
    for row in data.table("judged").to_pylist():
        assert (row["reason"] is not None) == (row["state"] in (UNKNOWN, FAILED)), row


def kept(root: Path, fault: str, seed: int = 0, day: str = "2026-11-29") -> Path:
    run = runs.make(seed, fault)
    directory = root / day / run.name
    directory.mkdir(parents=True)
    writing.write_meta(directory, run.meta)
    for table in ("gpu", "host", "io", "net", "marks", "events", "quality"):
        writing.write_table(directory, table, run.table(table))
    return directory


SITE = """
import os, time
from piolet.api import CannotTell, Detector, Finding

class Mine(Detector):
    name = "{name}"
    text = how = needs = "a test"
    unit = "1"

    def find(self, step):
        {body}
"""


def site(root: Path, name: str, body: str) -> str:
    directory = root / "detectors.d"
    directory.mkdir(exist_ok=True, mode=0o755)
    (directory / f"{name}.py").write_text(SITE.format(name=name, body=body))
    return str(directory)


@pytest.mark.skipif(os.geteuid() != 0, reason="a site's detector is a file of root's")
def test_one_that_hangs_eats_memory_prints_or_dies_harms_no_other(tmp_path: Path) -> None:
    step = kept(tmp_path, "")
    where = site(tmp_path, "hangs", "time.sleep(600)")
    site(tmp_path, "eats", "return [bytearray(1 << 36)]")
    site(tmp_path, "dies", "os._exit(7)")
    site(tmp_path, "prints", "print('{}'); return [Finding(len(step.gpus), 'x', 'y', confidence=0.9)]")
    names = ["hangs", "eats", "dies", "prints", "idle_tail"]
    said = {
        one.detector: one for _, one in bounded.judge([bounded.Request(step, name) for name in names], where, seconds=5)
    }
    assert [said[name].state for name in names] == [FAILED, FAILED, FAILED, FOUND, NOTHING]
    assert "longer than 5 s" in said["hangs"].reason
    assert "memory" in said["eats"].reason
    assert "status 7" in said["dies"].reason
    assert said["prints"].findings[0].confidence == 0.9


@pytest.mark.skipif(os.geteuid() != 0, reason="a site's detector is a file of root's")
def test_a_sites_detector_is_believed_if_only_root_can_write_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = site(tmp_path, "mine", "return []")
    assert "mine" in finding.names(where)
    assert finding.load("mine", where).name == "mine"
    os.chmod(Path(where) / "mine.py", 0o666)
    with pytest.raises(ObserveError, match="can be written by others than root"):
        finding.load("mine", where)
    os.chmod(Path(where) / "mine.py", 0o644)
    os.chown(Path(where) / "mine.py", 12345, 12345)
    with pytest.raises(ObserveError, match="does not belong to root"):
        finding.load("mine", where)
    with pytest.raises(ObserveError, match="does not belong to root"):
        finding.load(str(Path(where) / "mine.py"))
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert finding.load(str(Path(where) / "mine.py")).name == "mine"
    os.chmod(Path(where) / "mine.py", 0o664)  # as it is with umask 002
    with pytest.raises(ObserveError, match="others can write it") as raised_one:
        finding.load(str(Path(where) / "mine.py"))
    assert "chmod go-w" in raised_one.value.render()


@pytest.mark.skipif(os.geteuid() != 0, reason="a site's detector is a file of root's")
def test_a_file_that_is_no_detector_is_told_and_the_rest_goes_on(tmp_path: Path) -> None:
    where = site(tmp_path, "other", "return []")
    os.rename(Path(where) / "other.py", Path(where) / "mine.py")
    with pytest.raises(ObserveError, match="is named 'mine'"):
        finding.load("mine", where)
    (Path(where) / "broken.py").write_text("this is no Python")
    with pytest.raises(ObserveError, match="cannot load the detector"):
        finding.load("broken", where)
    with pytest.raises(ObserveError, match="there is no detector 'none'"):
        finding.load("none", where)
    assert sitefiles.names(where) == ["broken", "mine"]


@pytest.mark.skipif(os.geteuid() != 0, reason="a site's detector is a file of root's")
def test_a_sites_detector_of_our_name_has_no_confidence_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = site(tmp_path, "idle_tail", "return [Finding(1.0, 'x', 'y')]")
    monkeypatch.setattr(finding, "confidence", lambda *_: 0.99)
    assert finding.judged(finding.load("idle_tail", where), grid_of(runs.make(1))).findings[0].confidence is None


def test_a_confidence_is_the_worse_of_what_was_measured_and_of_this_version_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known = {"idle_tail": {"version": 2, "measured": [{"false_positives_most": 0.003}, {"false_positives_most": 0.02}]}}
    monkeypatch.setattr(finding, "rates", lambda: known)
    assert finding.confidence("idle_tail", 2) == 0.98
    assert finding.confidence("idle_tail", 1) is None
    assert finding.confidence("straggler", 1) is None


def test_data_that_cannot_be_read_are_a_failure_with_a_sentence(tmp_path: Path) -> None:
    step = kept(tmp_path, "")
    (step / "gpu.parquet").write_bytes(b"PAR1 and no more")
    said = {one.detector: one for one in bounded.find(step, str(tmp_path / "none"))}
    assert said["idle_tail"].state == FAILED and "gpu.parquet" in said["idle_tail"].reason
    assert "Traceback" not in said["idle_tail"].reason
