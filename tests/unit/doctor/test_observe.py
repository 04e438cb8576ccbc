"""`piolet doctor`: a node that records no figures of steps, though it should."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path
from typing import Literal

import pytest
from piolet.doctor import WARN, Machine, observe
from piolet.events.stream import Stream, Writer
from piolet.observe.found import Finder

from tests.unit.doctor.conftest import bad, only, program


@pytest.fixture
def recording(machine: Machine, tmp_path: Path) -> Machine:
    """The machine, which records steps, and has recorded some."""
    own = dataclasses.replace(machine.config.observe, steps="on", journal=str(tmp_path / "observe"))
    (tmp_path / "observe").mkdir()
    os.close(Stream(own.journal, None, Writer("c", "n", "0" * 32))._open())
    return dataclasses.replace(machine, config=dataclasses.replace(machine.config, observe=own))


def test_a_node_that_records(recording: Machine) -> None:
    assert not bad(recording)
    (finding,) = observe.steps_recorded(recording)
    assert finding.text.startswith("figures of steps are written in")


@pytest.mark.parametrize(("steps", "why"), [("off", "it is off"), ("auto", "no central service would take them")])
def test_a_node_that_is_not_to_record(recording: Machine, steps: Literal["auto", "off"], why: str) -> None:
    own = dataclasses.replace(recording.config.observe, steps=steps)
    (finding,) = observe.steps_recorded(
        dataclasses.replace(recording, config=dataclasses.replace(recording.config, observe=own))
    )
    assert (finding.state, why in finding.text) == ("ok", True)
    assert ("on" in finding.hint) == (steps == "auto")


def test_steps_without_control_groups_are_not_found(recording: Machine, tmp_path: Path) -> None:
    program(tmp_path / "bin/scontrol", "echo 'ProctrackType = proctrack/linuxproc'")
    (finding,) = observe.steps_recorded(recording)
    assert (finding.state, "no step is found" in finding.text) == (WARN, True)


def test_nothing_was_written(recording: Machine, tmp_path: Path) -> None:
    (part,) = (tmp_path / "observe").iterdir()
    part.unlink()
    only(recording, "steps recorded", "nothing was ever written in", "log of pioletd.service")
    (tmp_path / "observe").rmdir()
    only(recording, "steps recorded", "no figures are written in", "makes the directory")


def test_steps_run_and_nothing_is_written(recording: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (part,) = (tmp_path / "observe").iterdir()
    os.utime(part, (time.time() - 3600, time.time() - 3600))
    monkeypatch.setattr(Finder, "look", lambda _: {})
    assert not bad(recording)  # no step runs: there is nothing to write
    monkeypatch.setattr(Finder, "look", lambda _: {("/x", 1): None})
    only(recording, "steps recorded", "steps run here, and for 36", "disk is full", WARN)
