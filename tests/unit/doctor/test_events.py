"""`piolet doctor`: a node whose records are not written, or are named after another cluster."""

from __future__ import annotations

import dataclasses
import os
import pwd
import time
from pathlib import Path

import pytest
from piolet.doctor import BAD, WARN, Machine
from piolet.doctor.events import events

from tests.unit.doctor.conftest import bad, only, program


def with_spool(machine: Machine, spool: Path) -> Machine:
    own = dataclasses.replace(machine.config.events, spool=str(spool))
    return dataclasses.replace(machine, config=dataclasses.replace(machine.config, events=own))


def test_records_are_not_written(machine: Machine, tmp_path: Path) -> None:
    (part,) = (tmp_path / "events").iterdir()
    os.utime(part, (time.time() - 3600, time.time() - 3600))
    only(machine, "events", "this node has for 60 minutes not said in", "whether the disk is full or hung")
    part.unlink()
    only(machine, "events", "this node has never said in", "log of pioletd.service")
    only(with_spool(machine, tmp_path / "none"), "events", "no records are written in", "makes the directory")


def test_records_name_another_cluster(machine: Machine, tmp_path: Path) -> None:
    program(tmp_path / "bin/scontrol", "echo 'ProctrackType = proctrack/cgroup'; echo 'ClusterName = alps'")
    only(machine, "events", "records name the cluster 'cluster', and Slurm 'alps'", 'cluster = "alps"', WARN)
    program(tmp_path / "bin/scontrol", "echo 'ProctrackType = proctrack/cgroup'; echo 'ClusterName = cluster'")
    assert not bad(machine)


def test_outcomes_that_nobody_took(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "events.sock.lost").write_bytes(b"\0\0")
    only(machine, "events", "pioletd took no outcome of 2 steps", "see the log", WARN)


def test_verdicts_of_an_earlier_release(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "vet").mkdir()
    (tmp_path / "vet" / "past.json").touch()
    vet = dataclasses.replace(machine.config.vet, spool=str(tmp_path / "vet"))
    machine = dataclasses.replace(machine, config=dataclasses.replace(machine.config, vet=vet))
    assert not bad(machine)
    (tmp_path / "vet" / "verdicts-1001.jsonl").touch()
    only(machine, "events", "1 file of an earlier release with verdicts in", "verdicts-*.jsonl", WARN)


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to groups")
def test_the_forwarder_may_not_read_records(machine: Machine, tmp_path: Path) -> None:
    """Which it does by its group: of the directory, of its files, and of those that come."""
    group, spool = pwd.getpwnam("daemon").pw_gid, tmp_path / "events"
    (part,) = spool.iterdir()
    config = machine.config
    config = dataclasses.replace(
        config, central=dataclasses.replace(config.central, url="http://127.0.0.1:9"),
        forward=dataclasses.replace(config.forward, account="daemon"),
    )  # fmt: skip
    machine = dataclasses.replace(machine, config=config)

    def found() -> list[str]:
        return [one.text for one in events(machine) if one.state == BAD]

    assert found() == [f"1 file in {spool} cannot be read by daemon, and what is in them goes nowhere"]
    os.chown(part, -1, group)
    os.chown(spool, -1, group)
    assert "new files in" in found()[0], "the directory's group is not passed on"
    spool.chmod(0o2750)
    assert found() == []
