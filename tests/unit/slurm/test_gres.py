"""What Slurm's numbers of GPUs mean, by gres.conf."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from piolet.slurm import gres


@pytest.fixture
def devices(tmp_path: Path) -> Path:
    """A directory with device files whose names do not tell their minor numbers."""
    for name, minor in (("nvidia0", 0), ("nvidia1", 1), ("other", 5)):
        try:
            os.mknod(tmp_path / name, stat.S_IFCHR | 0o600, os.makedev(195, minor))
        except PermissionError:
            pytest.skip("device files are made by root")
    return tmp_path


def numbers(devices: Path, text: str, *names: str) -> list[str]:
    (devices / "gres.conf").write_text(text.replace("DEV", str(devices)))
    return gres.by_file(names, "node1", {"SLURM_CONF": str(devices / "slurm.conf")})


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Name=gpu File=DEV/nvidia[0-1]\n", ["/dev/nvidia0", "/dev/nvidia1"]),
        ("name=GPU type=a file=DEV/nvidia1 # turned\nName=gpu File=DEV/nvidia0\n", ["/dev/nvidia1", "/dev/nvidia0"]),
        ("NodeName=node[2-3] Name=gpu File=DEV/nvidia0\nName=gpu File=DEV/other\n", ["/dev/nvidia5", "1"]),
        ("NodeName=node[0-1] \\\nName=gpu File=DEV/other,DEV/nvidia0", ["/dev/nvidia5", "/dev/nvidia0"]),
        ("Name=gpu File=DEV/nvidia0", ["/dev/nvidia0", "1"]),
        ("Name=gpu File=DEV/absent,DEV/nvidia1", ["0", "/dev/nvidia1"]),
        ("Name=gpu File=DEV/gres.conf", ["0", "1"]),
        ("Name=mps File=DEV/nvidia0", ["0", "1"]),
        ("AutoDetect=nvml\nName=gpu File=DEV/nvidia[0-1]\n", ["0", "1"]),
        ("NodeName=node2 AutoDetect=nvml\nName=gpu File=DEV/nvidia1\n", ["/dev/nvidia1", "1"]),
        ("AutoDetect=off\nName=gpu File=DEV/nvidia1\n", ["/dev/nvidia1", "1"]),
        ("Include other.conf\nName=gpu File=DEV/nvidia1\n", ["0", "1"]),
        ("Name=gpu File=DEV/nvidia[1\n", ["0", "1"]),
        ("", ["0", "1"]),
    ],
)
def test_a_number_is_a_place_in_gres_conf(devices: Path, text: str, found: list[str]) -> None:
    """Unless Slurm looks for itself: then it is NVML's index."""
    assert numbers(devices, text, "0", "1") == found


def test_uuids_are_what_they_are(devices: Path) -> None:
    """And a number that there is not stays."""
    assert numbers(devices, "Name=gpu File=DEV/nvidia0", "GPU-a", "MIG-b", "7") == ["GPU-a", "MIG-b", "7"]


def test_without_a_file_numbers_stay(tmp_path: Path) -> None:
    assert gres.by_file(["0"], "node1", {"SLURM_CONF": str(tmp_path / "slurm.conf")}) == ["0"]
