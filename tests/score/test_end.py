"""What srun does when a scored step has ended: it is held up for a bounded time, whatever the step left."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from piolet.cli import origin, score, scored
from piolet.samples.dataset import Dataset, finish, open_dataset
from piolet.samples.request import Wish
from piolet.samples.settings import ScoreConfig
from piolet.score.overview import summary_of
from piolet.score.summary import summarise
from piolet.site.config import Config

from tests.support.waiting import wait_until

Simulate = Callable[..., Dataset]
SCRIPT = "gpu\nload matmul 3\nload copy 2\n"


@pytest.fixture
def room(simulate: Simulate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A step 1.0 that has just ended, named as srun's environment names it."""
    data = simulate(SCRIPT, 20)
    where = tmp_path / "set-1.0"
    shutil.copytree(data.directory, where)
    wish = Wish(out=str(tmp_path / "set-%j.%s"))
    monkeypatch.setenv(scored.VARIABLE, wish.to_json().decode())
    monkeypatch.setattr(origin, "began", lambda _: data.start / 1e9 - 1)
    monkeypatch.setenv("SLURM_JOB_NAME", "training")
    monkeypatch.setenv("SLURM_PIOLET_REQUEST", "ml")
    return where


def end(seconds: int = 2) -> tuple[int, float]:
    """End the step, as if its srun had been started before it; return the status and how long it took."""
    scored._BEGUN = before = time.monotonic()
    status = scored.end(1, 0, Config(score=ScoreConfig(end_wait_s=seconds)), score._screen)
    return status, time.monotonic() - before


def test_the_screen_comes_from_the_journal_or_from_the_file(room: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Whichever is there; and what srun knows of the step stays in the data set."""
    for _ in range(2):
        status, took = end(10)
        said = capfd.readouterr().err
        assert status == 0 and "GPU saturation 9" in said and f"the samples: {room}" in said, said
        assert took < 10
        for path in room.glob("*.journal"):
            finish(path, summary_of)
    known = json.loads((room / "step.json").read_text())
    assert known["name"] == "training" and known["environment"] == "ml", known
    assert known["command"] == origin._command(os.getppid()) != ""
    got = summarise(open_dataset(room))
    assert (got.job_name, got.environment) == ("training", "ml") and got.command == known["command"]


def test_a_file_system_that_hangs_holds_srun_up_for_so_long(
    room: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then it says which command shows the score, and leaves."""
    monkeypatch.setattr(Path, "glob", lambda *_: time.sleep(60))
    status, took = end(1)
    said = capfd.readouterr().err
    assert status == 1 and 0.9 < took < 1.6, took
    assert said == f"piolet: the score of step 1.0 is not ready after 1 s; it comes with: piolet score show {room}\n"


def test_nodes_that_are_not_ready_are_named(room: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The screen is of what is there."""
    (path,) = room.glob("*.journal")
    data = path.read_bytes()
    path.write_bytes(data[: data.rindex(b"PSJ1E")])
    status, took = end(2)
    said = capfd.readouterr().err
    assert status == 0 and "warning: the last samples of node did not come in time" in said, said
    assert "1 node has no end" in said and took < 2.5


def test_what_is_no_data_set_is_said_to_be_none(room: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """At once, not when the time is over."""
    (room / "a.parquet").write_bytes(b"PAR1 not really")
    status, took = end(10)
    assert status == 1 and took < 5 and "is no file of a Piolet data set" in capfd.readouterr().err


def test_another_steps_directory_is_left_alone(room: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Nothing is written into it."""
    room.rename(room.with_name("set-1.7"))
    scored._BEGUN = time.monotonic()
    assert scored.end(1, 7, Config(), score._screen) == 1
    assert "holds the data set of another step, 1.0" in capfd.readouterr().err
    assert not (room.with_name("set-1.7") / "step.json").exists()


def test_a_step_of_an_earlier_life_of_the_cluster_is_another(
    room: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers of jobs begin anew when Slurm's state is lost: what lies there since is not this step's score."""
    monkeypatch.undo()
    monkeypatch.setenv(scored.VARIABLE, Wish(out=str(room.parent / "set-%j.%s")).to_json().decode())
    assert abs(origin.began(os.getpid()) - time.time()) < 3600 and origin.began(1 << 22) == 0
    assert end()[0] == 1
    assert "holds the data set of an earlier step 1.0" in capfd.readouterr().err
    assert not (room / "step.json").exists()


def test_what_srun_left_is_somebody_elses_word(room: Path) -> None:
    """What is no such file is as none; no name of it is believed to be short or printable."""
    data = open_dataset(room)
    path = room / "step.json"
    for text in ("[1]", "{", "{" * 100_000, '{"name": 1, "command": null}', '{"name": "' + "x" * (1 << 17) + '"}'):
        path.write_text(text)
        assert summarise(data).job_name == ""
    path.unlink()
    os.mkfifo(path)
    assert summarise(data).job_name == ""
    path.unlink()
    path.write_text(json.dumps({"name": "\x1b]0;owned\x07", "command": "<b>"}))
    assert "\x1b]" not in score._screen(summarise(data), sys.stdout)


def test_the_command_is_that_of_srun(tmp_path: Path) -> None:
    """A directory that cannot be written costs its name only."""
    origin.leave(tmp_path / "none", 1)
    with subprocess.Popen(["sleep", "60"]) as program:  # returns when the program is there, whatever runs this test
        # A command line is empty for a moment after exec.
        wait_until(lambda: origin._command(program.pid), what="a command line")
        origin.leave(tmp_path, program.pid, {})
        program.kill()
    known: Any = json.loads((tmp_path / "step.json").read_text())
    assert set(known) == {"command", "user"} and known["command"] == "sleep 60" and origin._command(1 << 22) == ""
