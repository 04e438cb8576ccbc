"""One boot of Debian 12's own kernel, which has no idmapped SquashFS mounts, with the tests that tell most.

It runs where `make test-kernels` has fetched that kernel before, so that `make test` downloads none.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tools.kernels import guest
from tools.kernels.__main__ import ROOT, WORK

KERNEL, LIMIT_S = "6.1", 240
CLUSTER = "tests/cluster"
TELLING = (
    f"{CLUSTER}/test_container.py::test_mounts[native]",
    f"{CLUSTER}/test_container.py::test_squashfs_files[native]",
    f"{CLUSTER}/test_identity.py::test_home_is_there_and_their_own",
    f"{CLUSTER}/test_identity.py::test_no_capability_is_left",
    f"{CLUSTER}/test_identity.py::test_a_setuid_program_of_the_image_gives_nothing",
    f"{CLUSTER}/test_image_mounts.py::test_all_files_of_an_image_are_the_users_to_change[devicemapper-carol]",
    f"{CLUSTER}/test_image_mounts.py::test_directories_of_an_image_are_the_users_to_remove[devicemapper]",
    f"{CLUSTER}/test_image_mounts.py::test_all_files_of_an_image_are_the_users_to_change[fuse-carol]",
    f"{CLUSTER}/test_batch.py::test_the_command_line_wins_over_the_script",
    f"{CLUSTER}/test_faults_daemon.py::test_pioletd_is_killed_while_steps_run[group]",
)


def missing() -> str:
    """Return what this machine lacks for it; empty: nothing."""
    if "PIOLET_TEST_GUEST" in os.environ:
        return "this is a guest"
    if lacking := guest.missing():
        return f"not installed: {', '.join(lacking)} (make test-kernels installs them)"
    return "" if (WORK / KERNEL / "root").is_dir() else "make test-kernels has not fetched the kernel here"


@pytest.mark.skipif(bool(missing()), reason=missing())
def test_the_kernel_of_debian_12() -> None:
    command = [sys.executable, "-m", "tools.kernels", "--only", KERNEL, "--limit", str(LIMIT_S), "--", *TELLING]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S + 60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"| {len(TELLING)} | 0 | 0 |" in done.stdout, done.stdout
