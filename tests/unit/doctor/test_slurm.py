"""`piolet doctor`: plugins that Slurm does not load, and settings of Slurm that do harm."""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from piolet import doctor
from piolet.doctor import BAD, OK, WARN, Machine

from tests.unit.doctor.conftest import HELP, bad, only, program, srun


def test_a_plugin_is_not_loaded(machine: Machine, tmp_path: Path) -> None:
    srun(tmp_path, HELP.replace("  --vet=PROTOCOL\n", ""))
    only(machine, "plugins", "no line of plugstack.conf loads piolet_vet.so", "include /etc/slurm/plugstack.conf.d")


def test_a_plugin_is_loaded_twice(machine: Machine, tmp_path: Path) -> None:
    srun(tmp_path, HELP, 'srun: spank: option "vet" provided by both piolet_vet.so and piolet_vet.so\n')
    only(machine, "plugins", "Slurm loads piolet_vet.so twice", "remove one")


def test_a_plugin_of_another_slurm(machine: Machine, tmp_path: Path) -> None:
    said = (
        "srun: plugin_load_from_file: Incompatible Slurm plugin /x/piolet_vet.so version (23.02.1)\n"
        "srun: error: spank: /x/piolet_vet.so: Incompatible plugin version\n"
    )
    srun(tmp_path, HELP.replace("  --vet=PROTOCOL\n", ""), said)
    only(machine, "plugins", "which was built for Slurm 23.02.1", "piolet-plugins")


def test_the_file_of_a_plugin_is_missing(machine: Machine, tmp_path: Path) -> None:
    said = "srun: error: spank: piolet_score.so: Dlopen of plugin file failed\n"
    srun(tmp_path, HELP.replace("  --score[=...]\n", ""), said)
    only(machine, "plugins", "cannot load piolet_score.so: Dlopen of plugin file failed", "PluginDir")


def test_srun_itself_does_not_start(machine: Machine, tmp_path: Path) -> None:
    srun(tmp_path, "", "srun: error: resolve_ctls_from_dns_srv: res_nsearch error: Unknown host\n")
    only(machine, "plugins", "srun does not start: resolve_ctls_from_dns_srv", "see slurm.conf")


@pytest.mark.parametrize(
    ("said", "text", "hint"),
    [
        ("spank: Failed to open /etc/slurm/plugstack.conf: Permission denied", "not start: Failed to open", "chmod"),
        ("spank: /etc/slurm/x.conf:1: Failed to load plugin x.so. Aborting.", "x.so. Aborting.", "required"),
    ],
)
def test_srun_does_not_start_for_what_plugstack_says(
    machine: Machine, tmp_path: Path, said: str, text: str, hint: str
) -> None:
    """No word of lines that are not there: they are, and Slurm does not come to them."""
    srun(tmp_path, "", f"srun: error: {said}\nsrun: error: Plug-in initialization failed\n")
    only(machine, "plugins", text, hint)


def test_our_plugin_cannot_be_loaded_and_is_required(machine: Machine, tmp_path: Path) -> None:
    place = "/usr/lib64/slurm/piolet_environment.so"
    srun(
        tmp_path,
        "",
        f"srun: error: plugin_load_from_file: dlopen({place}): {place}: invalid ELF header\n"
        f"srun: error: spank: {place}: Dlopen of plugin file failed\n"
        f"srun: error: spank: /etc/slurm/plugstack.conf.d/piolet.conf:1: Failed to load plugin {place}. Aborting.\n"
        "srun: error: Plug-in initialization failed\n",
    )
    found = [finding.text for finding in bad(machine)]
    assert found[0] == "Slurm cannot load piolet_environment.so: invalid ELF header"
    assert len(found) == 2 and found[1].startswith("srun does not start: /etc/slurm/plugstack.conf.d/piolet.conf:1"), (
        found
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be somebody else")
def test_srun_is_asked_as_a_user(machine: Machine, tmp_path: Path) -> None:
    """What root may read says nothing: a plugstack.conf with the mode 0600 stops every srun but root's."""
    # Each pytest that starts on this machine shuts the directory that is above tmp_path.
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o755)
        shutil.copytree(tmp_path / "bin", f"{place}/bin")
        Path(place, "help").write_text(HELP)
        program(Path(place, "bin/srun"), f"[ $(id -u) = 4711 ] || cat {place}/help")
        here = dataclasses.replace(machine, path=f"{place}/bin")
        assert len(bad(dataclasses.replace(here, user=4711))) == len(doctor.slurm.OPTIONS)
        assert not bad(here)


def test_processes_that_outlive_a_job(machine: Machine, tmp_path: Path) -> None:
    program(tmp_path / "bin/scontrol", "echo 'ProctrackType           = proctrack/linuxproc'")
    only(machine, "process tracking", "proctrack/linuxproc: processes that leave", "TaskPlugin=task/cgroup", WARN)
    login = dataclasses.replace(machine, here=lambda name: name != "pioletd")
    assert "process tracking" not in {finding.check for finding in doctor.examine(login)}


def test_a_task_prolog_that_containers_do_not_have(machine: Machine, tmp_path: Path) -> None:
    program(tmp_path / "bin/scontrol", f"echo 'TaskPlugin = x'; echo 'TaskProlog = {tmp_path}/prologs/one'")
    only(machine, "task prolog", f"TaskProlog {tmp_path}/prologs/one is not in the containers", "to mounts in")
    (tmp_path / "prologs").mkdir()
    (tmp_path / "prologs/one").touch()
    for source, good in (("prologs", True), ("prologs/one", True), ("elsewhere", False)):
        mount = f"{tmp_path}/{source}" if good else f"{tmp_path}/{source}:{tmp_path}/prologs:ro"
        environment = dataclasses.replace(machine.config.environment, mounts=(mount,))
        own = dataclasses.replace(machine, config=dataclasses.replace(machine.config, environment=environment))
        found = {finding.check: finding.state for finding in doctor.examine(own)}
        # What is not on the node is in no container.
        assert (found["task prolog"], found.get("site mounts")) == ((OK, None) if good else (BAD, WARN))
    program(tmp_path / "bin/scontrol", "exit 1")
    only(machine, "task prolog", "scontrol show config does not work", "slurmctld", state=WARN)
