"""`piolet job`, `why`, `history`, `top` and `mark` as a user calls them; Slurm's commands are scripts in PATH."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from piolet.cli import main as cli
from piolet.slurm import onejob

Captured = pytest.CaptureFixture[str]
FIELDS = [field for field in onejob._FIELDS if field not in ("Restarts", "StdOut")]
NOW = int(time.time())
USUAL = {
    "UID": str(os.getuid()), "User": "alice", "Account": "", "Partition": "main", "Cluster": "alps", "State": "FAILED",
    "ExitCode": "2:0", "NodeList": "n1", "AllocTRES": "", "Submit": str(NOW - 100), "Start": str(NOW - 90),
    "End": str(NOW - 30), "TimelimitRaw": "10", "Reason": "None", "JobName": "train", "SubmitLine": "sbatch x",
}  # fmt: skip


def row(raw: str, shown: str = "", **more: str) -> str:
    said = {**USUAL, "JobIDRaw": raw, "JobID": shown or raw, **more}
    return "\x1f".join(said[field] for field in FIELDS)


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the file with what sacct prints; slurmctld knows no job."""
    bin_directory = tmp_path / "bin"
    bin_directory.mkdir()
    said = tmp_path / "sacct.out"
    said.write_text("\n".join([row("112"), row("112.0", ExitCode="2:0", JobName="python3")]))
    scripts = {
        "sacct": f'[ "$1" = --helpformat ] && {{ echo {" ".join(FIELDS)}; exit; }}\ncat {said}',
        "scontrol": "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1",
    }
    for name, text in scripts.items():
        (bin_directory / name).write_text(f"#!/bin/sh\n{text}\n")
        (bin_directory / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_directory}:{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("XDG_STATE_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "SLURM_JOB_ID", "SLURM_STEP_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return said


def test_a_job(slurm: Path, capsys: Captured) -> None:
    assert cli.main(["job", "112"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("job 112 (train)\n  state    FAILED, status 2\n")
    assert "why: the program of step 0 ended with status 2" in out and "there is no central service" in out
    assert cli.main(["job", "112.0", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["version"], said["job"], said["step"]) == (1, "112", "0")


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        (["job", "x"], 2, "'x' is no job"),
        (["job", "113"], 1, "Slurm knows no job 113"),
        (["job", "112.7"], 2, "job 112 has no step 7"),
        (["why", "112;ls"], 2, "is no job"),
        (["history", "--since", "soon"], 2, "--since is 'soon'"),
        (["history", "-n", "0"], 2, "-n is 0"),
        (["top", "112", "--interval", "0"], 2, "--interval is '0'"),
        (["mark"], 2, "there is nothing to do"),
        (["mark", "loss=1"], 2, "this is no job"),
        (["mark", "loss=1", "--job", "112"], 2, "marks are said in a job"),
        (["mark", "--job", "112"], 2, "where the output of job 112 is, Slurm does not tell"),
        (["mark", "--job", "112", "--from", "no"], 1, "cannot read no"),
        (["mark", "--job", "112", "--pattern", "x"], 1, "'x' names no mark"),
        (["mail"], 2, "there is no job"),
        (["mail", "112", "--show"], 1, "is no address"),
    ],
)
def test_refusals(slurm: Path, capsys: Captured, words: list[str], status: int, text: str) -> None:
    if words[1:2] == ["113"]:
        slurm.write_text("")
    assert cli.main(words) == status
    said = capsys.readouterr()
    assert text in said.err and "Traceback" not in said.err and said.err.startswith("piolet: error: "), said.err


def test_tasks_of_an_array(slurm: Path, capsys: Captured) -> None:
    slurm.write_text("\n".join([row("113", "112_2", State="COMPLETED", ExitCode="0:0"), row("112", "112_1")]))
    assert cli.main(["job", "112"]) == 0
    assert "112_1" in capsys.readouterr().out
    for words in (["why", "112"], ["job", "112.0"], ["top", "112"], ["job", "112", "--json"], ["mail", "112"]):
        assert cli.main(words) == 2
        assert "name" in capsys.readouterr().err


def test_another_users_job(slurm: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 61_999)
    for verb in ("job", "why", "top", "mail"):
        assert cli.main([verb, "112"]) == 2
        said = capsys.readouterr()
        assert "job 112 is alice's, not yours" in said.err and said.out == ""
    assert cli.main(["history", "--user", "alice"]) == 2
    assert "the jobs of alice are not yours" in capsys.readouterr().err


def test_why_and_history(slurm: Path, capsys: Captured) -> None:
    assert cli.main(["why", "112"]) == 0
    assert capsys.readouterr().out.startswith("why: the program of step 0 ended with status 2\n")
    assert cli.main(["why", "112", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["kind"] == "program"
    assert cli.main(["history"]) == 0
    assert "112  train" in capsys.readouterr().out
    assert cli.main(["history", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["number"] == 112
    slurm.write_text("")
    assert cli.main(["history"]) == 0
    assert capsys.readouterr().out.startswith("no job of ")


def test_marks(slurm: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said in the job, found in a file, and shown; anew each time, not added to."""
    monkeypatch.setenv("SLURM_JOB_ID", "112")
    monkeypatch.setenv("SLURMD_NODENAME", "n1")
    assert cli.main(["mark", "loss=0.5", "acc=nan"]) == 0
    monkeypatch.delenv("SLURM_JOB_ID")
    (slurm.parent / "out").write_text("step 3 loss 0.25 lr 1\n")
    for _ in range(2):
        assert cli.main(["mark", "--job", "112", "--from", "out", "--pattern", "lr (?P<lr>[0-9]+)"]) == 0
        assert "loss  0.25  1 value from output" in capsys.readouterr().out
    (slurm.parent / "home/.local/state/piolet/cluster/marks/112").chmod(0o755)
    assert cli.main(["job", "112", "--json"]) == 0
    found = {(one["name"], one["origin"]): one["count"] for one in json.loads(capsys.readouterr().out)["marks"]}
    assert found[("loss", "output")] == found[("lr", "output")] == 1
    (slurm.parent / "out").write_text("nothing\n")
    assert cli.main(["mark", "--job", "112", "--from", "out"]) == 0
    assert capsys.readouterr().out == "no mark was found\n"


def test_top_ends_when_the_job_has(slurm: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    assert cli.main(["top", "112", "--interval", "1h"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("job 112 (train)  FAILED  60 s of 10 min\n") and "\x1b" not in out
    assert "no step of it is sampled" in out and max(map(len, out.splitlines())) <= 60


def test_a_mail_is_shown(slurm: Path, capsys: Captured) -> None:
    assert cli.main(["mail", "112"]) == 0
    assert "the site sends no mail" in capsys.readouterr().out
    (slurm.parent / "p.toml").write_text('[mail]\nrecipients = "%u@users.example.org"\n')
    assert cli.main(["--config", str(slurm.parent / "p.toml"), "mail", "112", "--show"]) == 0
    out = capsys.readouterr().out
    assert "To: alice@users.example.org" in out and "Subject: job 112 (train) FAILED: the program of step 0" in out
