"""What it costs to save what a step changed, beside tar and mksquashfs of the same; and a start with [startup]."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.cluster import USER, Cluster
from tests.benchmarks.paired import measure
from tests.benchmarks.steps import Row

CHANGED = 1 << 30
_HOW = ("-noappend", "-all-root", "-no-xattrs", "-comp", "zstd", "-Xcompression-level", "3", "-b", "131072", "-quiet")
# Programs and libraries, each copy of its own, as a step that installs packages leaves them: no file is there twice.
_CHANGE = f"""\
import os, sys
left, copy = {CHANGED}, 0
while left > 0:
    copy += 1
    for folder, _, names in os.walk("/usr"):
        for name in names:
            path = f"{{folder}}/{{name}}"
            if left <= 0 or os.path.islink(path):
                continue
            with open(path, "rb") as file:
                data = (b"%d" % copy + file.read())[:left]
            os.makedirs(f"/srv/{{copy}}{{folder}}", exist_ok=True)
            with open(f"/srv/{{copy}}{{path}}", "wb") as file:
                file.write(data)
            left -= len(data)
print(os.environ["SLURM_JOB_ID"], flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def _changed(cluster: Cluster) -> Iterator[str]:
    """Run a step that has changed 1 GiB in its container, and give its name."""
    words = [str(cluster.directory / "as"), USER, "srun", "-w", "node1", "--environment=demo", "python3", "-c", _CHANGE]
    srun = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/")
    assert srun.stdin is not None and srun.stdout is not None
    try:
        yield f"{srun.stdout.readline().strip()}.0"
    finally:
        srun.stdin.close()
        srun.wait()


def rows(cluster: Cluster, rounds: int) -> list[Row]:
    """Measure: saving against tar and mksquashfs, both with the same compression; and starts."""
    room = Path(pwd.getpwnam(USER).pw_dir) / "bench-saving"
    cluster.run("mkdir", "-p", str(room))
    mksquashfs = shutil.which("mksquashfs") or "/usr/sbin/mksquashfs"
    try:
        with _changed(cluster) as step:
            job = step.partition(".")[0]

            def by_hand() -> None:
                enter = ["srun", "--overlap", f"--jobid={job}", "-w", "node1", f"--environment=job:{step}"]
                cluster.run(*enter, "tar", "-C", "/srv", "-cf", f"{room}/x.tar", ".")
                squash = f"exec {mksquashfs} - {room}/hand.sqsh -tar {' '.join(_HOW)} <{room}/x.tar"
                cluster.run(
                    "srun", "--overlap", f"--jobid={job}", "-w", "node1", "--environment=none", "sh", "-c", squash
                )

            def saved() -> None:
                cluster.run("piolet", "env", "save", "--force", "-Q", step, f"{room}/saved.sqsh")

            pairs = measure(by_hand, saved, rounds)
            sizes = [os.stat(room / name).st_size >> 20 for name in ("hand.sqsh", "saved.sqsh")]
            print(f"  files of {sizes[0]} MiB (what was changed) and {sizes[1]} MiB (with the image)", flush=True)
        return [Row("1 GiB changed: tar and mksquashfs of it / piolet env save", pairs, "faster")]
    finally:
        shutil.rmtree(room, ignore_errors=True)
