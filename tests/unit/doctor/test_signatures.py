"""`piolet doctor`: whether skopeo, the real one where it is, can check the signatures that policy.json asks for."""

from __future__ import annotations

import dataclasses
import json
import shutil
import stat
from pathlib import Path

import pytest
from piolet.doctor import BAD, OK, Machine, signatures

SKOPEO = shutil.which("skopeo")


def asking(machine: Machine, tmp_path: Path, skopeo: str, *kinds: str) -> Machine:
    """Return the machine with a policy that asks for such signatures of some images."""
    rules = {
        "default": [{"type": "reject"}],
        "transports": {"docker": {"a.example": [{"type": kind} for kind in kinds]}},
    }
    (tmp_path / "policy.json").write_text(json.dumps(rules))
    images = dataclasses.replace(machine.config.images, policy=str(tmp_path / "policy.json"), skopeo=skopeo)
    return dataclasses.replace(machine, config=dataclasses.replace(machine.config, images=images))


def program(tmp_path: Path, text: str) -> str:
    path = tmp_path / "skopeo"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_nothing_is_asked_for_and_nothing_is_tried(machine: Machine, tmp_path: Path) -> None:
    skopeo = program(tmp_path, f"touch {tmp_path}/ran")
    assert list(signatures.signatures(asking(machine, tmp_path, skopeo, "insecureAcceptAnything"))) == []
    (found,) = signatures.signatures(asking(machine, tmp_path, skopeo, "signedBy"))
    assert found.state == OK and "by GPG" in found.text
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("said", "state"),
    [
        ('level=fatal msg="Source image rejected: Debian-local change: sigstore disabled"', BAD),
        ('level=fatal msg="invalid policy: Unknown policy requirement type \\"sigstoreSigned\\""', BAD),
        ('level=fatal msg="Source image rejected: cryptographic signature verification failed"', OK),
    ],
)
def test_what_skopeo_says_to_a_signature(machine: Machine, tmp_path: Path, said: str, state: str) -> None:
    skopeo = program(tmp_path, f"echo '{said}' >&2; exit 1")
    (found,) = signatures.signatures(asking(machine, tmp_path, skopeo, "sigstoreSigned", "signedBy"))
    assert found.state == state and "by GPG and sigstore" in found.text
    assert state == OK or "sign with GPG" in (found.hint or "")


@pytest.mark.skipif(SKOPEO is None, reason="skopeo is not installed")
def test_the_real_one_gets_as_far_as_the_signature(tmp_path: Path, machine: Machine) -> None:
    """Whatever it was built with: the image that is made for the question is one, with a signature."""
    recorded = tmp_path / "said"
    skopeo = program(tmp_path, f'{SKOPEO} "$@" 2> {recorded}; status=$?; cat {recorded} >&2; exit $status')
    list(signatures.signatures(asking(machine, tmp_path, skopeo, "sigstoreSigned")))
    assert "Source image rejected" in recorded.read_text()
