"""`piolet doctor` as a whole: what it looks at on which machine, and what cannot be looked at."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from piolet import doctor
from piolet.cli import doctor as cli_doctor
from piolet.doctor import OK, SKIPPED, WARN, Machine

from tests.unit.doctor.conftest import bad, only, program


def test_all_is_well(machine: Machine) -> None:
    found = list(doctor.examine(machine))
    assert {finding.state for finding in found} == {OK}, found
    assert {
        "configuration",
        "plugins",
        "kernel",
        "image mounts",
        "user namespaces",
        "programs",
        "accounts",
        "daemons",
        "store",
        "cage",
        "devices",
        "process tracking",
        "events",
        "steps recorded",
    } == {finding.check for finding in found}


def test_a_login_node_has_no_daemons(machine: Machine, tmp_path: Path) -> None:
    for path in tmp_path.glob("*.sock"):
        path.unlink()
    login = dataclasses.replace(machine, here=lambda _: False)
    assert not bad(login)
    skipped = [finding for finding in doctor.examine(login) if finding.state == SKIPPED]
    assert {finding.check for finding in skipped} == {"kernel", "daemons", "store"}


def test_a_login_node_makes_no_containers(machine: Machine) -> None:
    """Its kernel and its devices are nobody's business; its image service is."""
    (machine.dev / "loop-control").unlink()
    (machine.proc / "sys/user/max_user_namespaces").write_text("0\n")
    login = dataclasses.replace(machine, release="4.18.0", here=lambda name: name == "piolet-imaged")
    assert not bad(login)
    answered = [finding.text for finding in doctor.examine(login) if finding.check == "daemons" and finding.state == OK]
    assert len(answered) == 1 and "piolet-imaged answers" in answered[0]


def test_which_daemons_belong_on_a_machine(tmp_path: Path) -> None:
    """Each where it is installed; `--role` says which must be."""
    program(tmp_path / "piolet-imaged", "")
    here = {
        role: [name for name in ("pioletd", "piolet-imaged") if cli_doctor._is_here(role, str(tmp_path / name))]
        for role in (None, "login", "node")
    }
    assert here == {None: ["piolet-imaged"], "login": ["piolet-imaged"], "node": ["pioletd", "piolet-imaged"]}
    assert cli_doctor._is_here("login", str(tmp_path / "elsewhere/piolet-imaged"))


def test_what_cannot_be_looked_at_is_said(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "proc/filesystems").unlink()
    only(machine, "kernel", "could not be looked at: No such file or directory", "look again", WARN)
