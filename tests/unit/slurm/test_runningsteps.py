"""What `scontrol show step` says of a job's steps, as Slurm 22.05 and 25.11 write it."""

from __future__ import annotations

from pathlib import Path

import pytest
from piolet.base.errors import SlurmError
from piolet.slurm.runningsteps import RunningStep, of_job, parse

SAID = """\
StepId=7.batch UserId=1001 StartTime=2026-11-29T10:13:53 TimeLimit=UNLIMITED State=RUNNING NodeList=node1 Nodes=1
StepId=7.10 UserId=alice(1001) StartTime=2026-11-29T10:13:53 TimeLimit=UNLIMITED State=RUNNING NodeList=node[1-2,7]
StepId=7.2 UserId=1001 StartTime=2026-11-29T10:13:53 TimeLimit=UNLIMITED State=RUNNING NodeList=node9 Name=StepId=7.5
StepId=7.3 UserId=1001 StartTime=2026-11-29T10:13:53 TimeLimit=UNLIMITED State=COMPLETED NodeList=node9
StepId=7.extern UserId=1001 State=RUNNING NodeList=node[1-2]
StepId=7.interactive UserId=1001 State=RUNNING NodeList=node1
StepId=7.4 State=RUNNING NodeList=(null)
"""


def test_steps_that_run() -> None:
    assert parse(SAID) == [
        RunningStep("7.2", 1001, ("node9",)),
        RunningStep("7.4", -1, ()),
        RunningStep("7.10", 1001, ("node1", "node2", "node7")),
        RunningStep("7.batch", 1001, ("node1",)),
    ]
    assert parse("No job steps in the system\n") == []


def scontrol(tmp_path: Path, text: str) -> str:
    program = tmp_path / "scontrol"
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(0o755)
    return str(program)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo 'slurm_get_job_steps error: Invalid job id specified' >&2; exit 1", "job 7 is over, or there never was"),
        ("echo 'Unable to contact slurm controller' >&2; exit 1", "cannot tell the steps of job 7: Unable to contact"),
        ("exit 3", "it did not say why"),
    ],
)
def test_what_slurm_does_not_say(tmp_path: Path, script: str, said: str) -> None:
    with pytest.raises(SlurmError, match=said):
        of_job("7", scontrol(tmp_path, script))


def test_a_job_without_steps_has_none(tmp_path: Path) -> None:
    assert of_job("7", scontrol(tmp_path, "echo 'Job step 7.4294967295 not found'; exit 1")) == []
    with pytest.raises(SlurmError, match="cannot start"):
        of_job("7", str(tmp_path / "not there"))
