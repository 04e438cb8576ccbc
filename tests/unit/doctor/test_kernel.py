"""`piolet doctor`: what the kernel lacks, how it mounts images, user namespaces and devices."""

from __future__ import annotations

import dataclasses
import os

import pytest
from piolet import doctor
from piolet.doctor import BAD, OK, SKIPPED, WARN, Machine, kernel
from piolet.node.root import imagemounts
from piolet.node.root.imagemounts import Choice

from tests.unit.doctor.conftest import only


def test_a_kernel_that_is_too_old(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imagemounts, "can_set_attributes", lambda: False)
    only(dataclasses.replace(machine, release="5.10.0-8-amd64"), "kernel", "5.12 is the oldest", "boot a newer kernel")


@pytest.mark.parametrize(
    ("choice", "text", "hint", "state"),
    [
        (
            Choice("", tried=[("idmap", "no")], hint="do this"),
            "cannot be mounted here: idmapped SquashFS mounts: no",
            "do this",
            BAD,
        ),
        (
            Choice("fuse", True, [("idmap", "no")]),
            "are mounted by squashfuse (idmapped SquashFS mounts: no)",
            "dm_mod",
            WARN,
        ),
    ],
)
def test_how_the_kernel_mounts_images(machine: Machine, choice: Choice, text: str, hint: str, state: str) -> None:
    imagemounts.note(choice, machine.config.node.state)
    only(machine, "image mounts", text, hint, state)


@pytest.mark.parametrize("way", ["idmap", "devicemapper"])
def test_the_fast_ways_are_well(machine: Machine, way: str) -> None:
    imagemounts.note(Choice(way), machine.config.node.state)
    assert not [finding for finding in doctor.examine(machine) if finding.state not in (OK, SKIPPED)]


def test_how_images_are_mounted_is_tried_where_no_daemon_was(machine: Machine) -> None:
    imagemounts.forget(machine.config.node.state)
    (found,) = kernel.image_mounts(machine)
    if os.geteuid() == 0:
        assert found.text.startswith("images of the site's store")
    else:
        assert (found.state, found.hint) == (SKIPPED, "start it, or look again as root")


def test_a_file_system_that_the_kernel_does_not_know(machine: Machine) -> None:
    (machine.proc / "filesystems").write_text("nodev\toverlay\n")
    only(machine, "kernel", "squashfs", "modprobe squashfs", WARN)


@pytest.mark.parametrize(
    ("setting", "value", "hint"),
    [
        ("user/max_user_namespaces", "0", "user.max_user_namespaces=15000"),
        ("kernel/unprivileged_userns_clone", "0", "kernel.unprivileged_userns_clone=1"),
        ("kernel/apparmor_restrict_unprivileged_userns", "1", "kernel.apparmor_restrict_unprivileged_userns=0"),
    ],
)
def test_user_namespaces_are_off(machine: Machine, setting: str, value: str, hint: str) -> None:
    (machine.proc / "sys" / setting).write_text(f"{value}\n")
    only(machine, "user namespaces", "users may not make them", hint)


def test_user_namespaces_that_pioletd_makes(machine: Machine) -> None:
    (machine.proc / "sys/kernel/unprivileged_userns_clone").write_text("0\n")
    imagemounts.note(Choice("idmap", True, helped=True), machine.config.node.state)
    (found,) = kernel.user_namespaces(machine)
    assert found.state == OK and "pioletd makes those of containers" in found.text


def test_user_namespaces_are_refused(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "_CLONE_NEWUSER", 1 << 62)  # a flag that no kernel takes
    only(machine, "user namespaces", "unshare(2) is refused", "kernel's log")


@pytest.mark.parametrize(("name", "state"), [("loop-control", BAD), ("fuse", WARN)])
def test_a_device_is_missing(machine: Machine, name: str, state: str) -> None:
    (machine.dev / name).unlink()
    only(machine, "devices", f"{name} is not there", "modprobe", state)


def test_a_device_that_is_not_for_users(machine: Machine) -> None:
    (machine.dev / "fuse").chmod(0o600)
    only(machine, "devices", "fuse is not for users", "chmod 0666", WARN)
