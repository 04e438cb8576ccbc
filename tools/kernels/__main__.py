"""Runs the tests that are marked `kernels` on kernels of Debian's, each in a guest: make test-kernels.

    python -m tools.kernels [--only KERNEL] [--mirror URL] [--limit SECONDS] [--cpus N] [--write] [ARGUMENT...]
    python -m tools.kernels --only 6.12 [--counted] --run MODULE [-- ARGUMENT...]

A guest has this machine's root, and so this checkout as it was built here, and a private cluster of one node. One
guest at a time, at most 15 minutes each. A kernel that cannot be had is left out by name. On one that is too old for
containers the test is that this is said. Afterwards a table, which --write puts into docs/kernels.md; the exit status
is 1 where a test failed, or a guest came to none.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path

from tools.cluster import image
from tools.cluster.errors import ClusterError
from tools.kernels import guest, report, source
from tools.kernels.report import Row
from tools.slurm_versions import read_results

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "build" / "kernels"
DOCUMENT = ROOT / "docs" / "kernels.md"
GUEST_S = 900
TESTS = ("tests/kernels", "tests/cluster", "tests/attacks")
REFUSED = ("tests/cluster/test_kernel_too_old.py",)

# What a run of tests has in build/ on this machine changes meanwhile: the guest has its own. How fast it is depends on
# what else this machine does, so tests in there wait longer before they give something up.
JOB = """
cd {root}
export PIOLET_TEST_NODES=1 PIOLET_TEST_GUEST=1 PIOLET_TEST_PATIENCE=4 PYTHONDONTWRITEBYTECODE=1
mkdir -p build/test-cluster
for place in build/test-*/; do own=$(mktemp -d) && chmod 755 "$own" && mount --bind "$own" "$place"; done
{python} -m tools.kernels.way >/mnt/out/way
exec {python} -m pytest -v -p no:cacheprovider --durations=10 --junitxml=/mnt/out/results.xml {arguments}
"""
RUN = """
cd {root}
export PYTHONDONTWRITEBYTECODE=1
exec {python} -m {words}
"""


def test(kernel: source.Kernel, mirror: str, arguments: list[str], limit_s: float, cpus: int) -> Row:
    """Boot a kernel and test on it. Raises ClusterError where it does not come to that."""
    unpacked = source.fetch(kernel, WORK, mirror)
    place = WORK / kernel.name
    words = arguments or (["-m", "kernels", "-k", "not crun", *TESTS] if kernel.runs else list(REFUSED))
    print(f"{kernel.name}: testing on {unpacked.release}; {place / 'out/log'}", flush=True)
    job = JOB.format(root=shlex.quote(str(ROOT)), python=shlex.quote(str(_python())), arguments=shlex.join(words))
    ended = guest.boot(unpacked, place, job, limit_s, cpus=cpus)
    out = place / "out"
    if not (out / "results.xml").exists():
        raise ClusterError(f"{kernel.name}: the guest did not come to the tests", log=out / "log")
    return Row(kernel.name, unpacked.release, (out / "way").read_text("utf-8").strip(),
               *read_results(out / "results.xml"), ended.seconds)  # fmt: skip


def run(kernel: source.Kernel, mirror: str, words: list[str], limit_s: float, counted: bool) -> int:
    """Boot a kernel, run a module there, and print what it printed; return its status. Raises ClusterError.

    words    the module and its arguments
    counted  as in guest.boot
    """
    unpacked, place = source.fetch(kernel, WORK, mirror), WORK / kernel.name
    print(f"{kernel.name}: {words[0]} on {unpacked.release}; {place / 'out/log'}", flush=True)
    job = RUN.format(root=shlex.quote(str(ROOT)), python=shlex.quote(str(_python())), words=shlex.join(words))
    ended = guest.boot(unpacked, place, job, limit_s, counted=counted)
    print((place / "out/log").read_text("utf-8", "replace"), end="")
    return 1 if ended.status is None else ended.status


def _python() -> Path:
    build = ROOT / "build"
    return Path(os.readlink(build) if build.is_symlink() else build) / "venv/bin/python"


def main() -> int:
    """Test on the kernels one after the other, and print a table."""
    parser = argparse.ArgumentParser(prog="kernels", description="Test on other kernels.")
    names = [kernel.name for kernel in source.KERNELS]
    parser.add_argument("--only", action="append", choices=names, help="this kernel")
    parser.add_argument("--mirror", default=source.MIRROR, help=f"where Debian's packages come from; {source.MIRROR}")
    parser.add_argument("--limit", type=int, default=GUEST_S, help=f"seconds for each; {GUEST_S}")
    parser.add_argument("--cpus", type=int, default=guest.CPUS, help=f"processors of a guest that tests; {guest.CPUS}")
    parser.add_argument("--write", action="store_true", help="write the table into docs/kernels.md")
    parser.add_argument("--run", metavar="MODULE", help="run this module there instead of tests; with --only")
    parser.add_argument("--counted", action="store_true", help="with --run: time there goes by instructions")
    parser.add_argument("tests", metavar="ARGUMENT", nargs="*", help="pytest's, instead of -m kernels; the module's")
    args = parser.parse_args()
    lacking = guest.missing()
    if os.geteuid() != 0 or lacking:
        what = f"these programs are missing: {', '.join(lacking)}" if lacking else "a guest shows files of every owner"
        hint = "tools/bootstrap.sh kernels" if lacking else "run it as root"
        print(f"kernels: {what}\nhint: {hint}", file=sys.stderr)
        return 1
    WORK.mkdir(parents=True, exist_ok=True)
    # A guest has no network, so what the cluster makes once is made before.
    image.ensure(ROOT / "build" / "cache", lambda text: print(text, flush=True))
    if args.run:
        if not args.only:
            parser.error("--run wants --only")
        try:
            chosen, words = [k for k in source.KERNELS if k.name in args.only], [args.run, *args.tests]
            return max(run(kernel, args.mirror, words, args.limit, args.counted) for kernel in chosen)
        except ClusterError as error:
            print(error.render(), file=sys.stderr)
            return 1
    rows: list[Row] = []
    left_out: list[str] = []
    well = True
    for kernel in source.KERNELS:
        if args.only and kernel.name not in args.only:
            continue
        try:
            rows.append(test(kernel, args.mirror, args.tests, args.limit, args.cpus))
        except source.UnavailableError as error:
            left_out.append(error.render())
        except ClusterError as error:
            print(error.render(), file=sys.stderr)
            well = False
    print("\n".join([*left_out, *report.complaints(rows), *report.table(rows)]))
    if args.write and well:
        report.write(DOCUMENT, rows)
    return 0 if well and not any(row.failed for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
