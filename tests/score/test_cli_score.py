"""`piolet score` as a user calls it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from piolet.cli import score
from piolet.errors import UsageError

from tests.score import simulation


def piolet(libraries: Path, tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Call it where scripted GPUs are."""
    script = tmp_path / "script"
    script.write_text("gpu\nload matmul 2\nload idle 1\n")
    command = [sys.executable, "-m", "piolet.cli.main", "score", *words]
    environment = simulation.environment(libraries, script)
    return subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )


def test_a_command_is_not_touched(libraries: Path, tmp_path: Path) -> None:
    """Its output, its input's end, its exit status."""
    done = piolet(libraries, tmp_path, "run", "--out", "data", "--", "sh", "-c", "echo out; sleep 1.5; exit 7")
    assert (done.returncode, done.stdout) == (7, "out\n")
    assert "GPU saturation" in done.stderr and "SIMULATED FIGURES" in done.stderr
    assert sorted(p.suffix for p in (tmp_path / "data").iterdir()) == [".parquet", ".parquet"]
    done = piolet(libraries, tmp_path, "run", "--out", "data", "--", "true")
    assert done.returncode == 1 and "holds a data set already" in done.stderr
    done = piolet(libraries, tmp_path, "run", "--out", "killed", "--", "sh", "-c", "kill -9 $$")
    assert done.returncode == 128 + 9
    for action in ("show", "report", "watch"):
        assert piolet(libraries, tmp_path, action, "data").returncode == 0
    assert (tmp_path / "data" / "report.html").exists()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("run",), "there is no command to run"),
        (("run", "--out", "x", "--", "/no/such/program"), "cannot start /no/such/program"),
        (("run", "--out", "/proc/nothing", "--", "true"), "cannot make the directory"),
        (("run", "--interval", "1h30", "--", "true"), "is no interval"),
        (("run", "--interval", "1us", "--", "true"), "is no interval"),
        (("show", "77"), "there is no data set 77"),
        (("show", "."), "holds no samples"),
        (("compare", "a", "b"), "there is no data set a"),
        (("show", ".", "--calibration", "absent.json"), "cannot read the calibration file"),
        (("import", "absent", "out"), "there is no absent"),
        (("calibrate", ".", "--out", "c.json"), "holds no samples"),
    ],
)
def test_what_is_wrong_is_said(libraries: Path, tmp_path: Path, words: tuple[str, ...], text: str) -> None:
    """In a sentence, without a traceback."""
    done = piolet(libraries, tmp_path, *words)
    assert done.returncode in (1, 2) and text in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_an_unknown_collector_does_not_stop_the_command(libraries: Path, tmp_path: Path) -> None:
    """It is refused before the command starts, which is the only time at which it can be."""
    done = piolet(libraries, tmp_path, "run", "--collector", "magic", "--out", "x", "--", "echo", "ran")
    assert done.returncode == 2 and "there is no collector 'magic'" in done.stderr and "ran" not in done.stdout


def test_steps_are_found_by_their_numbers(tmp_path: Path) -> None:
    """JOB.STEP, or JOB where it has one step."""
    for name in ("12.0", "13.0", "13.1"):
        (tmp_path / f"{score.PREFIX}{name}").mkdir()
    assert score.locate("12", tmp_path).name == f"{score.PREFIX}12.0"
    assert score.locate("13.1", tmp_path).name == f"{score.PREFIX}13.1"
    with pytest.raises(UsageError, match="several steps"):
        score.locate("13", tmp_path)
    with pytest.raises(UsageError, match="there is no data set 1"):
        score.locate("1", tmp_path)
