"""`piolet doctor`: the store of images, and the cage in which images are read."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path

import pytest
from piolet import doctor
from piolet.doctor import BAD, OK, WARN, Machine, findings, store

from tests.unit.doctor.conftest import only


def test_the_store(machine: Machine, tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.chmod(0o777)
    only(machine, "store", "may be written by others", "chmod 0711")
    store.chmod(0o555)
    only(machine, "store", "cannot write there, though it is its owner", "chmod 0711")
    store.chmod(0o710)
    only(machine, "store", "may not be entered by users", "chmod 0711", WARN)
    images = dataclasses.replace(machine.config.images, account="nobody")
    other = dataclasses.replace(machine, config=dataclasses.replace(machine.config, images=images))
    store.chmod(0o711)
    only(other, "store", f"belongs to user {os.geteuid()}, and nobody is user 65534 here", "one number on all machines")
    store.rmdir()
    only(machine, "store", "is not there", "install -d")
    store.touch()
    only(machine, "store", "is no directory", "move it away")


def test_a_store_that_does_not_answer(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(findings, "LOOK_S", 0.2)
    monkeypatch.setattr(store, "_seen", lambda _: time.sleep(60))
    only(machine, "store", "gives no answer within 0.2 s: steps with images of it fail", "server answers")


@pytest.mark.parametrize(
    ("standing", "reasons", "state", "said"),
    [
        (("namespaces", "landlock", "seccomp"), [], OK, "images are read in namespaces, landlock, seccomp"),
        (("landlock", "seccomp"), ["user namespaces: no"], WARN, "not there: user namespaces: no"),
        (("namespaces",), ["Landlock: not in use"], WARN, "not there: Landlock: not in use"),
        (("seccomp",), ["user namespaces: no", "Landlock: not in use"], BAD, "there is no cage to read them in"),
        ((), ["user namespaces: no"], BAD, "there is no cage to read them in"),
    ],
)
def test_cages(
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    standing: tuple[str, ...],
    reasons: list[str],
    state: str,
    said: str,
) -> None:
    monkeypatch.setattr("piolet.doctor.store.probe", lambda _: (standing, reasons))
    (found,) = [finding for finding in doctor.examine(machine) if finding.check == "cage"]
    assert found.state == state and said in found.text
