"""`piolet score` as a user calls it."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest
from piolet import __file__ as package_file
from piolet.base.errors import PioletError, ScoreError, UsageError
from piolet.cli import score, scored
from piolet.samples.dataset import open_dataset
from piolet.score.summary import summarise
from piolet.site.config import Config

from tests.score import simulation


def piolet(libraries: Path, tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Call it where scripted GPUs are."""
    (tmp_path / "script").write_text("gpu\nload matmul 2\nload idle 1\n")
    return python(libraries, tmp_path, "-m", "piolet.cli.main", "score", *words)


def python(libraries: Path, tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run Python there."""
    environment = simulation.environment(libraries, tmp_path / "script")
    command = [sys.executable, *words]
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
        (("show", "./77"), "hint: name its directory"),
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


def test_a_label_may_begin_with_a_dash(libraries: Path, tmp_path: Path) -> None:
    """And so may what the command is given."""
    done = piolet(libraries, tmp_path, "run", "--label=-x", "--out=data", "--", "echo", "-n", "ran")
    assert (done.returncode, done.stdout) == (0, "ran") and "usage:" not in done.stderr, done.stderr
    shown = piolet(libraries, tmp_path, "export", "data")
    assert '"label": "-x"' in shown.stdout and '"command": "echo -n ran"' in shown.stdout


def test_a_library_that_hangs_does_not_hold_the_command(libraries: Path, tmp_path: Path) -> None:
    """It is waited for a while, then the command runs without."""
    code = (
        "import sys; from pathlib import Path; from piolet.samples import local\n"
        "local._START_TIMEOUT_S, local._STOP_TIMEOUT_S = 0.5, 0.5\n"
        "sys.exit(local.run(['echo', 'ran'], Path('hung'), 0.1, 'gpm', None, '', 1_000_000, lambda: None))"
    )
    script = tmp_path / "script"
    script.write_text("hang nvmlInitWithFlags\ngpu\n")
    done = python(libraries, tmp_path, "-c", code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ran\n", "")


def test_runs_of_one_second_have_directories_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is second is not refused."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda *_: "now")
    names = [str(score._new_directory()) for _ in range(3)]
    assert names == ["piolet-score-local-now", "piolet-score-local-now-2", "piolet-score-local-now-3"]


def test_a_home_that_cannot_be_written_is_no_word_of_a_report(libraries: Path, tmp_path: Path) -> None:
    """The library that draws would say so."""
    piolet(libraries, tmp_path, "run", "--out", "data", "--", "sleep", "0.3")
    code = "import os; os.environ['MPLCONFIGDIR'] = '/proc/none'; from piolet.cli.main import main; main()"
    done = python(libraries, tmp_path, "-c", code, "score", "report", "data")
    assert (done.returncode, done.stdout, done.stderr) == (0, "data/report.html\n", ""), done.stderr


def test_a_file_of_a_data_set_that_is_not_there(libraries: Path, tmp_path: Path) -> None:
    """The sums are enough for the screen. Where there are none, as of earlier releases, the reason is said once."""
    piolet(libraries, tmp_path, "run", "--out", "data", "--", "sleep", "0.3")
    host = next((tmp_path / "data").glob("*.host.parquet"))
    host.unlink()
    assert piolet(libraries, tmp_path, "show", "data").returncode == 0
    whole = next((tmp_path / "data").glob("*.parquet"))
    pq.write_table(pq.read_table(whole), whole)
    done = piolet(libraries, tmp_path, "show", "data")
    assert done.returncode == 1 and done.stderr.endswith(".host.parquet: No such file or directory\n"), done.stderr


def test_a_sampler_that_cannot_write_says_so(libraries: Path, tmp_path: Path) -> None:
    """In a line, without a traceback."""
    words = ["--node=n", "--period=1", "--collector=host", "--gpus=", "--target=99", "--ready=98", "--parent=1"]
    done = python(libraries, tmp_path, "-m", "piolet.samples.local", *words)
    assert done.returncode == 1
    assert done.stderr.startswith("piolet: warning: nothing is sampled") and done.stderr.count("\n") == 1, done.stderr


def test_samples_that_cannot_be_written_cost_the_command_nothing(libraries: Path, tmp_path: Path) -> None:
    """A file system that can only be read, or a quota."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / f"{os.uname().nodename.partition('.')[0]}.journal").symlink_to("/proc/none")
    code = (
        "import sys; from pathlib import Path; from piolet.samples import local\n"
        "local.Path.glob = lambda *_: []\n"
        "sys.exit(local.run(['sh', '-c', 'sleep 0.3; exit 7'], Path('data'), 0.1, 'host', None, '', 30_000, None))"
    )
    done = python(libraries, tmp_path, "-c", code)
    assert done.returncode == 7
    assert done.stderr.startswith("piolet: warning: ") and done.stderr.count("\n") == 1, done.stderr


def test_a_long_command_stays_in_its_bound(libraries: Path, tmp_path: Path) -> None:
    """As scored steps do: its figures are of all samples, its samples fewer, and the report says so."""
    code = (
        "import sys; from pathlib import Path; from piolet.samples import local\n"
        "from piolet.score.overview import summary_of\n"
        "sys.exit(local.run(['sleep', '4'], Path('data'), 0.1, 'gpm', None, '', 30_000, lambda: summary_of))"
    )
    (tmp_path / "script").write_text(8 * "gpu\nload matmul 100\ngpu\nload copy 100\n")
    done = python(libraries, tmp_path, "-c", code)
    assert (done.returncode, done.stderr) == (0, "")
    data = open_dataset(tmp_path / "data")
    got = summarise(data)
    (node,) = data.nodes
    assert sorted(path.suffix for path in (tmp_path / "data").iterdir()) == [".parquet", ".parquet"]
    assert node.facts.thinned > 0.1 and node.is_summed and got.score.coverage > 0.9
    assert got.saturation.value == pytest.approx((0.9 + 0.92) / 2, abs=0.01)
    assert any(line.startswith("thinned: samples are kept as means over up to") for line in got.quality)
    assert sum(len(chunk["end"]) for chunk in node.chunks(["engine"])) < 500


def test_a_kept_request_does_not_outlive_an_upgrade(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another version may make another definition of it. Where the directory is gone, a sentence says so."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    monkeypatch.setattr(os, "getuid", lambda: 1234)
    with (tmp_path / "record").open("wb") as file:
        assert scored.submit("label=x", file.fileno(), None, Config()) == 0
    (kept,) = (tmp_path / "cache").rglob("*.rec")
    assert package_file.encode() in kept.read_bytes()
    (tmp_path / "gone").rmdir()
    with pytest.raises(PioletError, match="cannot tell the working directory"):
        scored.submit("label=x", 1, None, Config())


def test_a_directory_that_is_taken_is_told_before_the_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each time, and it is no error: scoring makes no step fail."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "getuid", lambda: 1234)
    (tmp_path / "mine").mkdir()
    while time.time_ns() - (tmp_path / "mine").stat().st_ctime_ns < 60_000_000:
        pass  # until then it may change without a new time stamp, and nothing is kept
    for there in (False, True, True):
        with (tmp_path / "record").open("wb") as file:
            assert scored.submit("out=mine", file.fileno(), None, Config()) == 0
        said = f"piolet: warning: no score: {tmp_path}/mine holds a data set already\nhint: " if there else ""
        err = capsys.readouterr().err
        assert err.startswith(said) and bool(err) == there
        (kept,) = (tmp_path / "cache").rglob("*.rec")  # of the first time, and of none after that
        assert f"{tmp_path}/mine\0".encode() in kept.read_bytes()
        (tmp_path / "mine/n1.parquet").touch()


def test_a_step_of_root_is_not_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 0)
    with pytest.raises(ScoreError, match="a step of root is not scored"):
        scored.submit("", 1, None, Config())


def test_a_data_set_cannot_steer_the_terminal(libraries: Path, tmp_path: Path) -> None:
    """Nor is what stands in it markup, where a terminal is and where none is."""
    assert piolet(libraries, tmp_path, "run", "--out=data", "--collector=host", "--", "sleep", "1").returncode == 0
    (path,) = (tmp_path / "data").glob("*[!t].parquet")
    table = pq.read_table(path)
    facts = json.loads(table.schema.metadata[b"piolet"])
    evil = "\x1b]0;owned\x07[/red][bold]:smile:"
    facts["header"] |= {"step": evil, "not_used": {"dcgm": evil}}
    facts["header"]["collectors"][0]["source"] = evil
    facts["events"].append({"event": "error", "at": 0, "text": evil})
    pq.write_table(table.replace_schema_metadata({b"piolet": json.dumps(facts).encode()}), path)
    summary = summarise(open_dataset(tmp_path / "data"))
    for stream in io.StringIO(), Terminal():
        text = score._screen(summary, stream)
        assert ("\x1b[" in text) == stream.isatty() and "\x1b]" not in text and "\x07" not in text
        assert text.count("?]0;owned?[/red][bold]:smile:") >= 3


class Terminal(io.StringIO):
    """A stream that is a terminal."""

    def isatty(self) -> bool:
        """Return that it is."""
        return True


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
