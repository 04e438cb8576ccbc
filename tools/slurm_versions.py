"""Builds Piolet against other versions of Slurm and runs the cluster tests there: make test-slurm-versions.

    python -m tools.slurm_versions [--only RELEASE] [--mirror URL] [--again] [PYTEST_ARGUMENT...]

Each release of Debian gets a root of its own in build/slurm-versions, made once by mmdebstrap with the packages of a
private cluster. A copy of this checkout is built in it and tested in it, with mounts and processes of its own: what is
left when a run is killed goes with the namespace. Afterwards a table; its exit status is 1 where anything failed or
was left out, since a test that is skipped for lack of a package has shown nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.cluster import image
from tools.cluster.errors import ClusterError
from tools.cluster.processes import FIXED_PATH

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "build" / "slurm-versions"
MIRROR = "http://deb.debian.org/debian"
ROOT_S, BUILD_S, TESTS_S = 1200, 1200, 3600
# Inside: where the checkout is, and how its packages and tools are got at.
PLACE = "piolet"
SHARED = ("/etc/resolv.conf", "/etc/hosts", "/etc/ssl/certs/ca-certificates.crt")
TESTS = ("tests/cluster", "--ignore=tests/cluster/test_guest.py")  # which changes settings of the kernel
PASSED_ON = ("PIP_", "http_proxy", "https_proxy", "no_proxy", "SSL_CERT")

# As process 1 of its own, with a root that is one: nsenter would leave a chroot. The shell stays, since orphans are its
# children, and a Python in its place would leave them zombies.
ENTER = """
set -e
root=$1; shift
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o mode=1777 tmp "$root/tmp"
mount -t tmpfs -o mode=755 run "$root/run"
for file in $SHARED; do
	[ ! -e "$file" ] || { [ -e "$root$file" ] || : >"$root$file"; mount --bind "$file" "$root$file"; }
done
cd "$root"
pivot_root . mnt
umount -l mnt
cd "/$PLACE"
"$@"
"""


@dataclass(frozen=True)
class Release:
    """A release of Debian, and the Slurm that it has."""

    name: str
    slurm: str


RELEASES = (Release("bookworm", "22.05"), Release("trixie", "24.11"), Release("forky", "26.05"))


@dataclass(frozen=True)
class Result:
    """What came of a release; `failed` are names of tests, `skipped` names with reasons."""

    slurm: str
    python: str
    passed: int
    failed: tuple[str, ...]
    skipped: tuple[str, ...]
    seconds: float


def packages() -> list[str]:
    """Return the packages of a private cluster and its tests."""
    script = [str(ROOT / "tools/bootstrap.sh"), "list"]
    return subprocess.run(script, capture_output=True, text=True, check=True).stdout.split()


def make_root(release: Release, mirror: str, log: Path) -> Path:
    """Return the root of a release, made if there is none or if it was made of something else."""
    root, stamp = WORK / release.name / "root", WORK / release.name / "made"
    dump = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=False).stdout
    options = image.apt_options(dump)
    recipe = json.dumps([release.name, mirror, packages(), options])
    if stamp.exists() and stamp.read_text("utf-8") == recipe:
        return root
    print(f"{release.name}: making a root of it (once; about a minute)", flush=True)
    shutil.rmtree(root, ignore_errors=True)
    stamp.unlink(missing_ok=True)
    command = ["mmdebstrap", "--variant=minbase", "--mode=root", f"--include={','.join(packages())}"]
    command += [f"--aptopt={option}" for option in options]
    # The private cluster asks apt where its packages come from.
    command += ["--skip=cleanup/apt/lists", release.name, str(root), mirror]
    run(command, log, ROOT_S, f"mmdebstrap of {release.name}")
    stamp.write_text(recipe, "utf-8")
    return root


def copy_checkout(root: Path) -> None:
    """Put the files of this checkout into the root; what an earlier run built stays."""
    place = root / PLACE
    place.mkdir(exist_ok=True)
    for old in place.iterdir():
        if old.name != "build":
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout
    for name in filter(None, os.fsdecode(listed).split("\0")):
        if (ROOT / name).exists():  # a file that was removed and not yet committed is still listed
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, place / name, follow_symlinks=False)


def run(command: Sequence[str], log: Path, timeout_s: float, what: str, env: dict[str, str] | None = None) -> None:
    """Run a command into the log. Raises ClusterError where it fails or takes too long."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=env, timeout=timeout_s, check=False
            )
        except subprocess.TimeoutExpired:
            raise ClusterError(f"{what} took more than {timeout_s:.0f} s", log=log) from None
        except OSError as error:
            raise ClusterError(f"{what} does not start: {error.strerror}") from None
    if done.returncode:
        raise ClusterError(f"{what} failed", log=log)


def inside(root: Path, command: Sequence[str], log: Path, timeout_s: float, what: str) -> None:
    """Run a command in the checkout in `root`. Raises ClusterError as `run` does."""
    env = {name: value for name, value in os.environ.items() if name.startswith(PASSED_ON)}
    env |= {"PATH": FIXED_PATH, "HOME": "/root", "LANG": "C.UTF-8", "SHARED": " ".join(SHARED), "PLACE": PLACE}
    env |= {"PIOLET_PACKAGES": "cluster"}
    enter = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private"]
    run([*enter, "sh", "-c", ENTER, "sh", str(root), *command], log, timeout_s, what, env)


def read_results(path: Path) -> tuple[int, tuple[str, ...], tuple[str, ...]]:
    """Return from pytest's XML how many tests passed, which failed, and which were skipped and why."""
    passed, failed, skipped = 0, [], []
    for case in xml.etree.ElementTree.parse(path).iter("testcase"):
        name = f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"
        skip = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            failed.append(name)
        elif skip is not None:
            skipped.append(f"{name}: {skip.get('message')}")
        else:
            passed += 1
    return passed, tuple(failed), tuple(skipped)


def test(release: Release, mirror: str, arguments: Sequence[str]) -> Result:
    """Build and test in a release. Raises ClusterError where it does not come to the tests."""
    log = WORK / release.name / "log"
    log.unlink(missing_ok=True)
    root = make_root(release, mirror, log)
    copy_checkout(root)
    build = root / PLACE / "build"
    found, versions = build / "results.xml", build / "versions"
    print(f"{release.name}: building", flush=True)
    inside(root, ["make", "plugins"], log, BUILD_S, f"the build in {release.name}")
    ask = "{ slurmd -V; python3 -V; } | cut -d' ' -f2 >build/versions"
    inside(root, ["sh", "-c", ask], log, 60, f"slurmd -V in {release.name}")
    slurm, python = versions.read_text("utf-8").split()
    if not slurm.startswith(f"{release.slurm}."):
        raise ClusterError(
            f"{release.name} has Slurm {slurm}, not {release.slurm}", "mend RELEASES in tools/slurm_versions.py"
        )
    print(f"{release.name}: testing with Slurm {slurm} and Python {python}; {log}", flush=True)
    found.unlink(missing_ok=True)
    began = time.monotonic()
    pytest = ["build/venv/bin/python", "-m", "pytest", "-q", "-rs", "--junitxml=build/results.xml"]
    try:
        inside(root, [*pytest, *(arguments or TESTS)], log, TESTS_S, f"the tests in {release.name}")
    except ClusterError:
        if not found.exists():
            raise
    return Result(slurm, python, *read_results(found), time.monotonic() - began)


def main() -> int:
    """Test the releases one after the other and print a table."""
    parser = argparse.ArgumentParser(prog="slurm_versions", description="Test with other versions of Slurm.")
    parser.add_argument("--only", action="append", choices=[one.name for one in RELEASES], help="this release")
    parser.add_argument("--mirror", default=MIRROR, help=f"where Debian's packages come from; {MIRROR}")
    parser.add_argument("--again", action="store_true", help="make the roots anew, of today's packages")
    parser.add_argument("tests", metavar="PYTEST_ARGUMENT", nargs="*", help=f"instead of {' '.join(TESTS)}")
    args = parser.parse_args()
    if os.geteuid() != 0:
        print("making a root needs root\nhint: run it as root", file=sys.stderr)
        return 1
    results: dict[str, Result | None] = {}
    for release in RELEASES:
        if args.only and release.name not in args.only:
            continue
        if args.again:
            (WORK / release.name / "made").unlink(missing_ok=True)
        try:
            results[release.name] = test(release, args.mirror, args.tests)
        except ClusterError as error:
            print(error.render(), file=sys.stderr)
            results[release.name] = None
    print("\n".join(table(results)))
    return 0 if all(one and not one.failed and not one.skipped for one in results.values()) else 1


def table(results: Mapping[str, Result | None]) -> Iterator[str]:
    """Yield a line for each test that did not pass, and a table of the releases."""
    for name, result in results.items():
        if result is not None:
            yield from (f"{name}: failed: {one}" for one in result.failed)
            yield from (f"{name}: skipped: {one}" for one in result.skipped)
    yield "| Debian | Slurm | Python | passed | failed | skipped | minutes |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for name, result in results.items():
        if result is None:
            yield f"| {name} | | | did not come to the tests | | | |"
        else:
            counts = f"{result.passed} | {len(result.failed)} | {len(result.skipped)}"
            yield f"| {name} | {result.slurm} | {result.python} | {counts} | {result.seconds / 60:.1f} |"


if __name__ == "__main__":
    sys.exit(main())
