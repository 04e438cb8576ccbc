"""Builds and tests Piolet for aarch64 on a machine that is none: make test-arm64.

    python -m tools.arm64 [--only PART] [--mirror URL] [--limit SECONDS] [--again] [PYTEST_ARGUMENT...]

Debian 12 for arm64 in build/arm64/root, where the plugins and the package are built. Then the parts: `emulated`, the
tests of files and bytes by qemu-user, without those of `left_out.py`, each of which is named with its reason; `rpm`,
rpmbuild in the same way; and a boot of each of two kernels of Debian's with a private cluster of one node, for what
needs the kernel: that of Debian 12, and one whose pages have 16 KiB (Debian has none with 64 KiB). Afterwards a table;
the exit status is 1 where a test failed, or a part came to none.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from pathlib import Path

from tools.arm64 import emulation, left_out, root
from tools.cluster.errors import ClusterError
from tools.kernels import guest, source
from tools.slurm_versions import inside, read_results

WORK = root.WORK
LOG = WORK / "log"
EMULATED_S, GUEST_S, TEST_S = 5400, 1800, 300
# A processor with the atomics of Armv8.1, which emulate fast; no vectors of variable length and no signed pointers.
MACHINE = guest.Machine("qemu-system-aarch64", ("-machine", "virt", "-cpu", "neoverse-n1"), "ttyAMA0", root.HOME)
KERNELS = (
    source.Kernel("6.1", "bookworm"),
    source.Kernel("6.12-16k", "bookworm-backports", flavour="arm64-16k"),
)
PARTS = ("emulated", "rpm", *(kernel.name for kernel in KERNELS))
# What pulls and imports does so in namespaces, which qemu-user's second thread keeps it from: it is for the guests.
EMULATED = ("tests/unit", "tests/wire", "tests/images/test_squash.py")
# In the guest: each way of the kernel's that differs by architecture, once.
BOOTED = (
    "tests/cluster/test_architecture.py",
    "tests/cluster/test_identity.py::test_home_is_there_and_their_own",
    "tests/cluster/test_identity.py::test_no_capability_is_left",
    "tests/cluster/test_remap_root.py::test_inside_root_and_outside_the_user",
    "tests/cluster/test_container.py::test_mounts",
    "tests/cluster/test_container.py::test_squashfs_files",
    "tests/cluster/test_image_mounts.py::test_all_files_of_an_image_are_the_users_to_change[devicemapper-carol]",
    "tests/cluster/test_image_mounts.py::test_all_files_of_an_image_are_the_users_to_change[fuse-carol]",
    "tests/cluster/test_batch.py::test_the_command_line_wins_over_the_script",
    "tests/cluster/test_faults_daemon.py::test_pioletd_is_killed_while_steps_run[group]",
)
JOB = """
cd /piolet
export PIOLET_TEST_NODES=1 PIOLET_TEST_PATIENCE=5
build/venv/bin/python -m tools.kernels.way >/mnt/out/way
exec build/venv/bin/python -m pytest -v -p no:cacheprovider --durations=12 --junitxml=/mnt/out/results.xml {arguments}
"""


def emulated(arguments: list[str]) -> tuple[str, tuple[str, ...], str]:
    """Run the tests by qemu-user; return a row, what failed, and which machine that was."""
    found = root.PLACE / "build" / "results.xml"
    found.unlink(missing_ok=True)
    words = arguments or [*EMULATED, *(f"--deselect={name}" for name in left_out.REASONS)]
    print(f"testing by qemu-user; {LOG}", flush=True)
    began = time.monotonic()
    pytest = ["build/venv/bin/python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "tools.arm64.patience"]
    pytest += ["--durations=10", f"--timeout={TEST_S}"]
    try:
        inside(root.HOME, [*pytest, "--junitxml=build/results.xml", *words], LOG, EMULATED_S, "the tests by qemu-user")
    except ClusterError:
        if not found.exists():
            raise
    return row("qemu-user", "this machine's", found, time.monotonic() - began)


def booted(
    kernel: source.Kernel, mirror: str, limit_s: float, arguments: list[str]
) -> tuple[str, tuple[str, ...], str]:
    """Boot a kernel and test in the guest; return a row, what failed, and how images are mounted there."""
    # Below the root, which is what the guest sees.
    unpacked = source.fetch(kernel, root.HOME / "kernels", mirror, "arm64")
    place = WORK / kernel.name
    place.mkdir(exist_ok=True)
    print(f"testing on {unpacked.release} in a guest; {place / 'out/log'}", flush=True)
    ended = guest.boot(
        unpacked, place, JOB.format(arguments=shlex.join(arguments or ["-k", "not crun", *BOOTED])), limit_s, MACHINE
    )
    found = place / "out" / "results.xml"
    if not found.exists():
        raise ClusterError("the guest did not come to the tests", log=place / "out/log")
    line, failed, skipped = row(f"a guest, {kernel.name}", unpacked.release, found, ended.seconds)
    way = (place / "out/way").read_text("utf-8").strip()
    up = f"{kernel.name}: up after {ended.up_s:.0f} s; {way}"
    return line, failed, "\n".join(filter(None, [up, skipped]))


def row(name: str, kernel: str, found: Path, seconds: float) -> tuple[str, tuple[str, ...], str]:
    """Return a line of the table, what failed, and what was skipped."""
    passed, failed, skipped = read_results(found)
    line = f"| {name} | {kernel} | {passed} | {len(failed)} | {len(skipped)} | {seconds / 60:.1f} |"
    return line, failed, "\n".join(f"{name}: skipped: {one}" for one in skipped)


def main() -> int:
    """Build, test, and print a table."""
    parser = argparse.ArgumentParser(prog="arm64", description="Build and test for aarch64, emulated.")
    parser.add_argument("--only", action="append", choices=PARTS, help="this part")
    parser.add_argument("--mirror", default=source.MIRROR, help=f"where Debian's packages come from; {source.MIRROR}")
    parser.add_argument("--limit", type=int, default=GUEST_S, help=f"seconds for a guest; {GUEST_S}")
    parser.add_argument("--again", action="store_true", help="make the root anew, of today's packages")
    parser.add_argument("tests", metavar="PYTEST_ARGUMENT", nargs="*", help="instead of the tests of each part")
    args = parser.parse_args()
    wanted = args.only or PARTS
    WORK.mkdir(parents=True, exist_ok=True)
    LOG.unlink(missing_ok=True)
    os.nice(5)
    try:
        if os.geteuid() != 0:
            raise ClusterError("a root for another architecture is made by root", "run it as root")
        lacking = [*emulation.missing(), *(guest.missing(MACHINE) if root.HOME.exists() else [])]
        if lacking:
            raise ClusterError(f"these programs are missing: {', '.join(lacking)}", "tools/bootstrap.sh arm64")
        with emulation.registered():
            root.make(args.mirror, args.again, LOG)
            print(root.build(LOG), flush=True)
            parts = []
            if "emulated" in wanted:
                parts.append(emulated(args.tests))
            if "rpm" in wanted:
                print("rpmbuild made", *root.rpms(LOG), sep="\n  ", flush=True)
        for kernel in KERNELS:
            if kernel.name in wanted:
                parts.append(booted(kernel, args.mirror, args.limit, args.tests))
    except ClusterError as error:
        print(error.render(), file=sys.stderr)
        return 1
    if "emulated" in wanted and not args.tests:
        print("\n".join(f"qemu-user: left out: {name}: {why}" for name, why in left_out.REASONS.items()))
    for line, failed, more in parts:
        print("\n".join([*filter(None, [more]), *(f"{line.split('|')[1].strip()}: failed: {one}" for one in failed)]))
    print("| where | kernel | passed | failed | skipped | minutes |\n| --- | --- | --- | --- | --- | --- |")
    print("\n".join(line for line, _, _ in parts))
    return 1 if any(failed for _, failed, _ in parts) else 0


if __name__ == "__main__":
    sys.exit(main())
