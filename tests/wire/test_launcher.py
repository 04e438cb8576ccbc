"""Task prologs under Slurm 24.11: slurmstepd's descriptor becomes the entry program, which runs the script."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

ENTRY = Path(__file__).resolve().parents[2] / "build" / "plugins" / "piolet-entry"


def test_the_descriptor_of_the_own_program_becomes_the_entry_program(shims: ModuleType) -> None:
    """And no other does; what is replaced closes on exec, as before."""
    own = os.open("/proc/self/exe", os.O_PATH | os.O_CLOEXEC)
    other = os.open("/bin/sh", os.O_PATH | os.O_CLOEXEC)
    before = os.readlink(f"/proc/self/fd/{other}")
    try:
        shims.lib.launcher_replace(b"/no/such/program")
        assert os.path.samefile(f"/proc/self/fd/{own}", "/proc/self/exe")
        count = len(os.listdir("/proc/self/fd"))
        shims.lib.launcher_replace(str(ENTRY).encode())
        assert os.path.samefile(f"/proc/self/fd/{own}", ENTRY)
        assert os.readlink(f"/proc/self/fd/{other}") == before
        assert not os.get_inheritable(own)
        assert len(os.listdir("/proc/self/fd")) == count
    finally:
        os.close(own)
        os.close(other)


@pytest.mark.parametrize("status", [0, 7])
def test_the_entry_program_runs_a_script_as_slurmstepd_would(tmp_path: Path, status: int) -> None:
    """With its words, its environment and its streams, in a process group of its own, and no other descriptor."""
    script = tmp_path / "prolog"
    script.write_text(
        f'#!/bin/sh\necho "$0 $1 $SEEN"; ls /proc/self/fd | wc -l; ps -o pgid= $$; echo $$\nexit {status}\n'
    )
    script.chmod(0o755)
    read, write = os.pipe()
    os.set_inheritable(read, True)
    words = ["/usr/sbin/slurmstepd", "slurm_script_launcher", str(script), str(script), "a word"]
    done = subprocess.run(
        words, executable=ENTRY, env={"SEEN": "yes", "PATH": "/usr/bin:/bin"}, capture_output=True, text=True,
        check=False, close_fds=False,
    )  # fmt: skip
    os.close(read)
    os.close(write)
    lines = done.stdout.splitlines()
    assert done.returncode == status
    assert lines[0] == f"{script} a word yes"
    assert int(lines[1]) == 4  # three streams, and the directory that ls reads
    assert lines[2].strip() == lines[3]


def test_a_script_that_is_not_there(tmp_path: Path) -> None:
    words = ["slurmstepd", "slurm_script_launcher", f"{tmp_path}/none", "none"]
    done = subprocess.run(words, executable=ENTRY, capture_output=True, text=True, check=False)
    assert done.returncode == 127
    assert done.stderr == f"piolet: error: cannot run {tmp_path}/none in the container: No such file or directory\n"
