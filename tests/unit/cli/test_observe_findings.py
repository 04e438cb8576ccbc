"""`piolet observe findings` and `replay`: what they print, and how they end."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from pathlib import Path

import pytest
from piolet.cli import main, stepsasked
from piolet.observe import finding

from tests.unit.cli.test_observe_data import Service
from tests.unit.observe.test_finding import kept

EXAMPLE = Path(__file__).resolve().parents[3] / "examples/detectors"
NONE = "/sys"  # a directory that has no detector
ROOTS = pytest.mark.skipif(os.geteuid() != 0, reason="a site's detector is a file of root's")


@pytest.fixture
def example(tmp_path: Path) -> Path:
    """Return a copy of the example's directory: a checkout may be anybody's."""
    where = tmp_path / "detectors"
    shutil.copytree(EXAMPLE, where)
    for path in (where, where / "memory_pressure.py"):
        os.chmod(path, 0o755 if path.is_dir() else 0o644)
        os.chown(path, os.geteuid(), os.getegid())
    return where


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    status = main.main(["--config", "/dev/null", "observe", *words])
    said = capsys.readouterr()
    return status, said.out, said.err


def test_a_steps_findings_have_advice_and_what_cannot_be_told_has_reasons(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    step = kept(tmp_path, "throttling")
    status, out, err = run(capsys, "findings", str(step), "--detectors", NONE)
    assert status == 0 and not err
    assert "throttling: GPU" in out and "show the node to the site" in out
    assert "14 detectors:" in out and "cannot tell: " in out
    status, out, _ = run(capsys, "findings", step.name, "--dir", str(tmp_path), "--json", "--detectors", NONE)
    said = {one["detector"]: one for one in json.loads(out)["detectors"]}
    assert said["throttling"]["findings"][0]["evidence"]["temperature"] > 80
    assert said["throttling"]["state"] == "found" and said["silent_counters"]["state"] == "nothing"


def test_what_is_no_step_and_what_is_no_directory_is_one_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = run(capsys, "findings", str(tmp_path), "--detectors", NONE)
    assert (status, out) == (1, "") and "holds no samples\nhint: data of a step" in err and err.count("\n") == 2
    for words in (("findings", str(tmp_path)), ("findings", "--list"), ("replay", "idle_tail")):
        status, out, err = run(capsys, *words, "--detectors", "/etc/passwd")
        assert (status, out) == (1, "") and "/etc/passwd is no directory of detectors\nhint: " in err


def test_users_ask_the_service_for_what_is_theirs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it keeps the data only itself can read."""
    step = kept(tmp_path, "throttling")
    service = Service(step)
    service.names = [step.name]
    monkeypatch.setattr(stepsasked, "service", lambda _: service)
    config = tmp_path / "piolet.toml"
    config.write_text(f'[central]\nurl = "https://central"\n[keep]\ndirectory = "{tmp_path}/none"\n')
    assert main.main(["--config", str(config), "observe", "findings", step.name, "--detectors", NONE]) == 0
    assert "throttling: GPU" in capsys.readouterr().out and "/v1/stepfile" in service.asked


def test_what_is_no_step_is_an_error_with_a_hint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, "findings", "7.0", "--dir", str(tmp_path))
    assert (status, out) == (1, "") and "there are no data of step 7.0" in err and "hint:" in err
    status, _, err = run(capsys, "findings", "7.0", "--dir", str(tmp_path / "none"))
    assert status == 1 and "No such file" in err and "--dir names other ones" in err
    status, _, err = run(capsys, "findings", "7;0", "--dir", str(tmp_path))
    assert status == 1 and "neither a directory nor JOB.STEP" in err
    status, _, err = run(capsys, "findings")
    assert status == 1 and "no step is named" in err


def test_the_list_says_of_each_what_it_finds_and_how_often_it_is_wrong(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = {"generator": "runs2", "date": "2026-11-29", "false_positives": 3, "false_positives_most": 0.0078,
           "clean": 1000, "found": 967, "faulty": 1000}  # fmt: skip
    monkeypatch.setattr(finding, "rates", lambda: {"straggler": {"version": 1, "measured": [one]}})
    status, out, _ = run(capsys, "findings", "--list", "--detectors", NONE)
    assert status == 0
    assert "straggler" in out and "meant for effects from 0.15 on (a share)" in out
    assert "on made runs (runs2, 2026-11-29): wrong in 3 of 1000 clean ones, found in 967 of 1000 faulty ones" in out
    status, out, _ = run(capsys, "findings", "--list", "--json", "--detectors", NONE)
    listed = {each["name"]: each for each in json.loads(out)["detectors"]}
    assert listed["straggler"]["confidence"] == 0.9922 and listed["rank_hung"]["confidence"] is None


@ROOTS
def test_the_example_says_what_its_data_set_expects(example: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "replay", str(example / "memory_pressure.py"), "--dir", str(example / "steps"))
    assert status == 0
    assert "2026-11-29/1.0  tasks on node1 waited for memory 30 %" in out
    assert "looked at 3 steps: found something in 1, nothing in 1, cannot tell of 1" in out
    assert "nobody measured the pressure of memory" in out


@ROOTS
def test_the_detector_that_the_documents_print_does_what_they_say(
    example: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (EXAMPLE.parents[1] / "docs/detectors.md").read_text()
    mine = tmp_path / "mine"
    mine.mkdir(mode=0o755)
    (mine / "memory_pressure.py").write_text(whole.partition("```python\n")[2].partition("```")[0])
    for word, where in (("memory_pressure", str(mine)), (str(mine / "memory_pressure.py"), NONE)):
        status, out, _ = run(capsys, "replay", word, "--dir", str(example / "steps"), "--detectors", where)
        assert status == 0
        assert "2026-11-29/1.0  tasks on node1 waited for memory 30 %" in out
        assert "looked at 3 steps: found something in 1, nothing in 1, cannot tell of 1" in out
    status, out, _ = run(capsys, "findings", "--list", "--detectors", str(mine))
    assert status == 0 and "tasks that wait for memory for minutes" in out


@ROOTS
def test_what_a_data_set_does_not_expect_is_told_and_the_exit_status(
    example: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (example / "steps/2026-11-29/2.0/expected.json").write_text('{"memory_pressure": "found"}')
    words = ("replay", "memory_pressure", "--dir", str(example / "steps"), "--detectors", str(example))
    status, out, _ = run(capsys, *words)
    assert status == 1 and "2026-11-29/2.0  expected: found, and it says: nothing" in out
    (example / "steps/2026-11-29/2.0/expected.json").write_text('{"memory_pressure": "yes"}')
    status, _, err = run(capsys, *words)
    assert status == 1 and "found, nothing, unknown" in err


def test_replay_runs_over_all_days_and_names_a_detector_that_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept(tmp_path, "idle_tail", 1, "2026-11-28")
    kept(tmp_path, "", 2, "2026-11-29")
    (tmp_path / "packed").mkdir()
    packed = kept(tmp_path / "aside", "idle_tail", 3, "2026-11-20")
    with zipfile.ZipFile(tmp_path / "packed/2026-11-20.zip", "w") as archive:
        for path in packed.iterdir():
            archive.write(path, f"{packed.name}/{path.name}")
    status, out, _ = run(capsys, "replay", "idle_tail", "--dir", str(tmp_path), "--detectors", NONE, "--json")
    lines = [json.loads(line) for line in out.splitlines()]
    assert status == 0
    told = [(line["step"][:10], line["state"]) for line in lines]
    assert told == [("2026-11-28", "found"), ("2026-11-29", "nothing"), ("2026-11-20", "found")]
    status, _, err = run(capsys, "replay", "idle_tails", "--dir", str(tmp_path), "--detectors", NONE)
    assert status == 1 and "there is no detector 'idle_tails'" in err
