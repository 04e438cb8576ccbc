"""`piolet doctor`: devices and hooks that cannot be used, and a Slurm that keeps no step to its GPUs."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest
from piolet import doctor
from piolet.doctor import OK, WARN, Machine
from piolet.hooks.settings import HooksConfig

from tests.unit.doctor.conftest import only, program

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="files of root's need root")
SPEC = {"cdiVersion": "0.5.0", "kind": "nvidia.com/gpu", "devices": [{"name": "all"}]}


def with_hooks(machine: Machine, tmp_path: Path, **settings: object) -> Machine:
    (tmp_path / "cdi").mkdir()
    (tmp_path / "hooks.d").mkdir()
    places = {"directory": str(tmp_path / "hooks.d"), "cdi": (str(tmp_path / "cdi"),), "driver_root": str(tmp_path)}
    hooks = HooksConfig(**{**places, **settings})  # type: ignore[arg-type]
    return dataclasses.replace(machine, config=dataclasses.replace(machine.config, hooks=hooks))


def test_a_slurm_that_keeps_no_step_to_its_gpus(machine: Machine, tmp_path: Path) -> None:
    machine = with_hooks(machine, tmp_path)
    (tmp_path / "cdi" / "x.json").write_text(json.dumps(SPEC))
    states = {finding.state: finding for finding in doctor.examine(machine) if finding.check == "gpus"}
    assert set(states) == {OK, WARN}
    assert "every container sees all GPUs" in states[WARN].text
    program(tmp_path / "bin/scontrol", "echo 'ProctrackType = proctrack/cgroup'; echo 'ConstrainDevices        = yes'")
    assert [one.state for one in doctor.examine(machine) if one.check == "gpus"] == [OK]


def test_a_specification_that_others_could_have_written(machine: Machine, tmp_path: Path) -> None:
    machine = with_hooks(machine, tmp_path)
    (tmp_path / "cdi" / "x.json").write_text(json.dumps(SPEC))
    (tmp_path / "cdi" / "x.json").chmod(0o666)
    only(machine, "gpus", "can be written by others than root", "as root")


def test_a_hook_that_cannot_be_loaded(machine: Machine, tmp_path: Path) -> None:
    machine = with_hooks(machine, tmp_path)
    (tmp_path / "hooks.d" / "mine.py").write_text("import no_such_module")
    only(machine, "hooks", "No module named 'no_such_module'", "piolet hooks list")


def test_a_hook_that_is_always_on_and_not_there(machine: Machine, tmp_path: Path) -> None:
    only(with_hooks(machine, tmp_path, always=("nothing",)), "hooks", "there is no hook 'nothing'", "[hooks]")


def test_a_detector_that_others_could_have_written_or_that_is_none(machine: Machine, tmp_path: Path) -> None:
    keep = dataclasses.replace(machine.config.keep, detectors=str(tmp_path / "detectors.d"))
    machine = dataclasses.replace(machine, config=dataclasses.replace(machine.config, keep=keep))
    (tmp_path / "detectors.d").mkdir()
    (tmp_path / "detectors.d" / "mine.py").write_text("x = 1")
    only(machine, "detectors", "must define one class that derives from piolet.api.Detector", "findings --list")
    (tmp_path / "detectors.d" / "mine.py").chmod(0o666)
    only(machine, "detectors", "can be written by others than root", "it is root's")
