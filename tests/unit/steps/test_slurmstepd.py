"""Which processes are believed to be slurmstepd."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from piolet.steps import slurmstepd


def test_anybodys_process_does_not_pass_for_a_slurmstepd() -> None:
    """The title alone is not believed: not of a user, and not of root's if the program is another."""
    forged = subprocess.Popen(["slurmstepd: [991.0]", "30"], executable="/bin/sleep")
    try:
        deadline = time.monotonic() + 10
        while not Path(f"/proc/{forged.pid}/cmdline").read_bytes().startswith(b"slurmstepd: [991.0]"):
            assert time.monotonic() < deadline, "the process has not taken its title"
        assert "991.0" not in slurmstepd.running()
    finally:
        forged.kill()
        forged.wait()


@pytest.mark.skipif(os.geteuid() != 0, reason="slurmstepd is root's")
@pytest.mark.parametrize(("title", "name"), [("991.3", "991.3"), ("991.3+1", "991.3"), ("991.batch", "991.batch")])
def test_a_slurmstepd_is_known_by_its_step(tmp_path: Path, title: str, name: str) -> None:
    """Of a component by what Slurm tells plugins of it: by that name the step's container is noted."""
    shutil.copy("/bin/sleep", tmp_path / "slurmstepd")
    process = subprocess.Popen([f"slurmstepd: [{title}]", "30"], executable=tmp_path / "slurmstepd")
    try:
        deadline = time.monotonic() + 10
        while not Path(f"/proc/{process.pid}/cmdline").read_bytes().startswith(b"slurmstepd: ["):
            assert time.monotonic() < deadline, "the process has not taken its title"
        assert slurmstepd.running().get(name) == process.pid
    finally:
        process.kill()
        process.wait()
