"""What Slurm tells of one job; commands in the place of Slurm's print what those of 22.05 printed."""

from __future__ import annotations

from pathlib import Path

import pytest
from piolet.base.errors import SlurmError, UsageError
from piolet.slurm import onejob
from piolet.slurm.onejob import JobName

FIELDS = [field for field in onejob._FIELDS if field not in ("Restarts", "StdOut")]
USUAL = {
    "UID": "1500", "User": "alice", "Account": "ml", "Partition": "main", "Cluster": "alps", "State": "COMPLETED",
    "ExitCode": "0:0", "NodeList": "n[1-2]", "AllocTRES": "billing=2,cpu=2,gres/gpu=8,node=2", "Submit": "1790000000",
    "Start": "1790000010", "End": "1790000070", "TimelimitRaw": "10", "Reason": "None", "JobName": "train",
    "SubmitLine": "sbatch train.sh",
}  # fmt: skip


def row(raw: str, shown: str = "", **more: str) -> str:
    said = {**USUAL, "JobIDRaw": raw, "JobID": shown or raw, **more}
    return "\x1f".join(said[field] for field in FIELDS)


def command(where: Path, name: str, out: str, status: int = 0, said: str = "") -> str:
    (where / f"{name}.out").write_text(out)
    path = where / name
    path.write_text(
        f'#!/bin/sh\n[ "$1" = --helpformat ] && {{ echo {" ".join(FIELDS)}; exit 0; }}\n'
        f'echo "$*" > {where}/{name}.words\ncat {where}/{name}.out\necho "{said}" >&2\nexit {status}\n'
    )
    path.chmod(0o755)
    return str(path)


def runs(where: Path, name: str, accounted: str, current: str = "", status: int = 0) -> list[onejob.ToldRun]:
    sacct = command(where, "sacct", accounted)
    scontrol = command(where, "scontrol", current, status, "Invalid job id specified" if status else "")
    return onejob.runs_of(onejob.parse_name(name), sacct, scontrol)[0]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("112", JobName(112)),
        ("112.0", JobName(112, step="0")),
        ("112.batch", JobName(112, step="batch")),
        ("112_7", JobName(112, task=7)),
        ("112_7.3", JobName(112, task=7, step="3")),
        ("112+1", JobName(112, component=1)),
        ("112+1.0", JobName(112, component=1, step="0")),
    ],
)
def test_names(text: str, name: JobName) -> None:
    assert onejob.parse_name(text) == name
    assert name.of_job == text.partition(".")[0]


@pytest.mark.parametrize(
    "text", ["", "x", "0", "112.", "112_", "-1", "112.x", "112; rm", "99999999999", "1_2+3", "112\n"]
)
def test_what_is_no_name(text: str) -> None:
    with pytest.raises(UsageError, match="is no job"):
        onejob.parse_name(text)


def test_a_job_with_steps(tmp_path: Path) -> None:
    said = "\n".join([
        row("112", State="FAILED", ExitCode="1:0"),
        row("112.batch", JobName="batch", State="FAILED", ExitCode="1:0", NodeList="n1"),
        row("112.0", JobName="python3", State="OUT_OF_MEMORY", ExitCode="0:125", End="1790000060"),
    ])  # fmt: skip
    (run,) = runs(tmp_path, "112", said, status=1)
    assert (run.shown, run.number, run.run, run.user, run.uid, run.gpus) == ("112", 112, 0, "alice", 1500, 8)
    assert (run.state, run.status, run.nodes, run.limit_s) == ("FAILED", 1, ("n1", "n2"), 600.0)
    assert (run.submit, run.start, run.end, run.reason) == (1790000000.0, 1790000010.0, 1790000070.0, "")
    assert [(one.name, one.title, one.state, one.signal, one.nodes) for one in run.steps] == [
        ("batch", "batch", "FAILED", 0, ("n1",)), ("0", "python3", "OUT_OF_MEMORY", 125, ("n1", "n2")),
    ]  # fmt: skip
    assert runs(tmp_path, "112", row("112", TimelimitRaw="525600"), status=1)[0].limit_s is None  # UNLIMITED
    words = (tmp_path / "sacct.words").read_text()
    assert "--duplicates" in words and "-j 112 " in words and "Restarts" not in words


def test_runs_of_a_requeued_job_have_their_own_steps(tmp_path: Path) -> None:
    said = "\n".join([
        row("112", State="NODE_FAIL", Start="1790000010", End="1790000020", NodeList="n1"),
        row("112.0", State="CANCELLED", NodeList="n1"),
        row("112", Submit="1790000020", Start="1790000030"),
        row("112.0"),
        row("112.1"),
    ])  # fmt: skip
    first, second = runs(tmp_path, "112", said, status=1)
    assert (first.run, first.state, [one.state for one in first.steps]) == (0, "NODE_FAIL", ["CANCELLED"])
    assert (second.run, second.state, [one.name for one in second.steps]) == (1, "COMPLETED", ["0", "1"])


def test_array_tasks_and_components_are_told_apart(tmp_path: Path) -> None:
    said = "\n".join([row("114", "112_10"), row("113", "112_2", State="CANCELLED by 1500"), row("112", "112_1")])
    found = runs(tmp_path, "112", said, status=1)
    assert [(one.shown, one.number, one.run) for one in found] == [
        ("112_1", 112, 0),
        ("112_2", 113, 0),
        ("112_10", 114, 0),
    ]
    assert (found[1].state, found[1].by) == ("CANCELLED", "1500")
    het = runs(tmp_path, "120", "\n".join([row("120", "120+0"), row("121", "120+1")]), status=1)
    assert [(one.shown, one.number) for one in het] == [("120+0", 120), ("120+1", 121)]


def test_words_that_users_choose_change_nothing_else(tmp_path: Path) -> None:
    """A separator and a line end in the job's name, which comes last; a row of another job's number is no row."""
    name = "x\x1fy\n113\x1f113\x1f0\x1froot"
    said = row("112", JobName=name, SubmitLine="sbatch")
    (run,) = runs(tmp_path, "112", said + "\n" + row("112.0"), status=1)
    assert (run.uid, run.state) == (1500, "COMPLETED")


SHOWN = """\
JobId=115 ArrayJobId=112 ArrayTaskId=3 JobName=a b JobState=FAILED
   UserId=alice(1500) GroupId=alice(1500) MCS_label=N/A
   Priority=1 Nice=0 Account=(null) QOS=(null)
   JobState=RUNNING Reason=None Dependency=(null)
   Requeue=1 Restarts=2 BatchFlag=1 Reboot=0 ExitCode=0:0
   RunTime=00:00:07 TimeLimit=1-00:10:00 TimeMin=N/A
   SubmitTime=1790000000 EligibleTime=1790000000
   StartTime=1790000010 EndTime=1790086400 Deadline=N/A
   Partition=main AllocNode:Sid=login:1
   NodeList=n[1-2]
   TRES=cpu=2,node=2,billing=2,gres/gpu=4
   Command=/home/alice/my script.sh
   WorkDir=/home/alice UserId=root(0)
   StdOut=/home/alice/slurm-112_3.out

"""


def test_without_accounting_slurmctld_tells(tmp_path: Path) -> None:
    sacct = command(tmp_path, "sacct", "", 1, "Slurm accounting storage is disabled")
    scontrol = command(tmp_path, "scontrol", SHOWN)
    (run,), missing = onejob.runs_of(onejob.parse_name("112_3"), sacct, scontrol)
    assert (run.shown, run.number, run.run, run.user, run.uid, run.state) == ("112_3", 115, 2, "alice", 1500, "RUNNING")
    assert (run.limit_s, run.end, run.gpus, run.nodes, run.account) == (87000.0, None, 4, ("n1", "n2"), "")
    assert (run.output, run.command) == ("/home/alice/slurm-112_3.out", "/home/alice/my script.sh")
    assert run.name == "a b JobState=FAILED" and "accounting storage is disabled" in missing[0]


def test_a_limit_of_a_year_is_none(tmp_path: Path) -> None:
    assert onejob.shown(SHOWN.replace("1-00:10:00", "365-00:00:00")).limit_s is None  # type: ignore[union-attr]


def test_slurmctld_knows_better_what_runs(tmp_path: Path) -> None:
    said = row("115", "112_3", State="PENDING", Start="Unknown", End="Unknown", NodeList="None assigned")
    (run,) = runs(tmp_path, "112_3", said, SHOWN)
    assert (run.state, run.output, run.run) == ("RUNNING", "/home/alice/slurm-112_3.out", 2)
    ended = row("115", "112_3", State="NODE_FAIL")
    before, now = runs(tmp_path, "112_3", ended, SHOWN)
    assert (before.state, now.state) == ("NODE_FAIL", "RUNNING")


def test_whose_a_job_is_that_accounting_heard_of_by_its_step_first(tmp_path: Path) -> None:
    """slurmdbd has it as root's until its own record comes; slurmctld knows better, if it is the same job."""
    made = {"UID": "0", "User": "root", "State": "PENDING", "Start": "Unknown", "End": "Unknown"}
    (run,) = runs(tmp_path, "112_3", row("115", "112_3", Submit="1790000000", **made), SHOWN)
    assert (run.user, run.uid) == ("alice", 1500)
    before, now = runs(tmp_path, "112_3", row("115", "112_3", Submit="1780000000", **made), SHOWN)
    assert ((before.user, before.uid), (now.user, now.uid)) == (("root", 0), ("alice", 1500))


def test_which_task_of_an_array_it_is_that_accounting_heard_of_by_its_step_first(tmp_path: Path) -> None:
    over = SHOWN.replace("JobState=RUNNING", "JobState=FAILED").replace("ExitCode=0:0", "ExitCode=139:0")
    (run,) = runs(tmp_path, "112", row("115", "115", State="FAILED", ExitCode="0:11"), over)
    assert (run.shown, run.status, run.signal, run.state) == ("112_3", 139, 0, "FAILED")


def test_nobody_knows_it(tmp_path: Path) -> None:
    with pytest.raises(SlurmError, match="knows no job 7"):
        runs(tmp_path, "7", "", status=1)
    sacct = command(tmp_path, "sacct", "", 1, "disabled")
    scontrol = command(tmp_path, "scontrol", "", 1, "slurm_load_jobs error: Invalid job id specified")
    with pytest.raises(SlurmError, match="does not tell of job 7") as caught:
        onejob.runs_of(JobName(7), sacct, scontrol)
    assert "disabled" in str(caught.value.hint) and "Invalid job id" in str(caught.value.hint)


def test_a_users_last_jobs(tmp_path: Path) -> None:
    sacct = command(tmp_path, "sacct", row("112") + "\n" + row("113"))
    assert [one.number for one in onejob.last_of("alice", 1790000000.0, sacct)] == [112, 113]
    words = (tmp_path / "sacct.words").read_text()
    assert "-X -u alice --starttime=2026-" in words
