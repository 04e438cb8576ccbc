"""One boot of Debian 12's own kernel, which has no idmapped SquashFS mounts, with the tests that tell most.

`make test` has it fetched where it can be had (tools/kernels/ready.py). It takes two minutes alone, and gives way to
whatever runs beside it. `make test-kernels` has all that differs between kernels.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from tools.kernels.ready import KERNEL, ROOT, missing

# Several times what it takes: what goes wrong in there has deadlines of its own.
LIMIT_S = 1500
CLUSTER = "tests/cluster"
TELLING = (
    f"{CLUSTER}/test_container.py::test_mounts[native]",
    f"{CLUSTER}/test_container.py::test_squashfs_files[native]",
    f"{CLUSTER}/test_identity.py::test_no_capability_is_left",
    f"{CLUSTER}/test_identity.py::test_a_setuid_program_of_the_image_gives_nothing",
    f"{CLUSTER}/test_image_mounts.py::test_all_files_of_an_image_are_the_users_to_change[devicemapper-carol]",
    f"{CLUSTER}/test_image_mounts.py::test_directories_of_an_image_are_the_users_to_remove[devicemapper]",
    f"{CLUSTER}/test_image_mounts.py::test_all_files_of_an_image_are_the_users_to_change[fuse-carol]",
)


@pytest.mark.skipif(bool(missing()), reason=missing())
def test_the_kernel_of_debian_12() -> None:
    # One processor: two wait for each other where this machine is busy.
    options = ("--only", KERNEL.name, "--limit", str(LIMIT_S), "--cpus", "1")
    command = [sys.executable, "-m", "tools.kernels", *options, "--", *TELLING]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S + 60, check=False)
    if done.returncode:
        log = ROOT / "build" / "kernels" / KERNEL.name / "out" / "log"
        said = log.read_text(errors="replace")[-20_000:] if log.exists() else ""
        pytest.fail(done.stdout + done.stderr + said)
    assert f"| {len(TELLING)} | 0 | 0 |" in done.stdout, done.stdout
