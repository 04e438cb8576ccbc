"""What a view by device mapper costs beside an idmapped mount: python -m tests.benchmarks.views [--only mount]

For a kernel that has both, as root, with control of it alone: a guest of tools/kernels. Two pairs, each in turn:
mounting an image by device mapper and by a loop device alone; and whole warm `srun`s in a container, on two nodes of
which one uses idmapped mounts and the other views.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from piolet.node.root.devicemapper import DeviceMapper
from piolet.system import linux, loop

from tests.benchmarks.cluster import ROOT, Cluster, call_tool
from tests.benchmarks.paired import Pairs, measure, sampled

UID, GID = 4242, 5353


def mounts(rounds: int) -> Pairs:
    """Time the mount of an image by a loop device (the baseline) and as a view, in a mount namespace of our own."""
    linux.unshare(linux.CLONE_NEWNS)
    linux.mount("none", "/", None, linux.MS_REC | linux.MS_PRIVATE)
    mapper = DeviceMapper("benchmark")
    with tempfile.TemporaryDirectory() as room:
        target, tree, image = Path(room, "target"), Path(room, "tree"), Path(room, "image.sqsh")
        target.mkdir()
        tree.mkdir()
        (tree / "content").write_bytes(os.urandom(8 << 20))
        command = [
            "mksquashfs",
            str(tree),
            str(image),
            "-all-root",
            "-force-gid",
            "1",
            "-no-xattrs",
            "-noI",
            "-quiet",
            "-no-progress",
        ]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        file = os.open(image, os.O_RDONLY)

        def timed(view: bool) -> float:
            settle()
            began = time.perf_counter()
            if view:
                mapper.mount_view(file, {0: UID, 1: GID}, str(target))
            else:
                loop.mount_image(file, str(target))
            seconds = time.perf_counter() - began
            linux.umount(str(target))
            return seconds

        return sampled(lambda: timed(False), lambda: timed(True), rounds)


def settle() -> None:
    """Wait until the devices of the mount before are gone: the kernel takes them away later, by and by."""
    while any("dm" in path.name or (path / "loop/backing_file").exists() for path in Path("/sys/block").iterdir()):
        time.sleep(0.01)
    time.sleep(0.02)


def starts(rounds: int) -> Pairs:
    """Time warm steps on node1, with idmapped mounts, and on node2, with views."""
    directory = ROOT / "build" / "benchmark-views"
    call_tool("up", "--nodes", "2", "--dir", str(directory))
    try:
        cluster = Cluster(directory)
        path = directory / "etc" / "piolet.toml"
        before = path.read_text("utf-8")
        path.write_text(before.replace("[node]\n", '[node]\nimage_mounts = "devicemapper"\n'), "utf-8")
        try:
            cluster.tool("stop-pioletd", "node2")
            cluster.tool("start-pioletd", "node2")
        finally:
            path.write_text(before, "utf-8")

        def step(node: str) -> None:
            cluster.run("srun", "-w", node, "--environment=demo", "true")

        return measure(lambda: step("node1"), lambda: step("node2"), rounds)
    finally:
        call_tool("down", "--dir", str(directory))


def main() -> int:
    """Measure and print both."""
    parser = argparse.ArgumentParser(prog="views", description=__doc__.partition("\n")[0])
    measured = {"srun": starts, "mount": mounts}
    parser.add_argument("--only", choices=list(measured))
    parser.add_argument("--rounds", type=int, default=30)
    args = parser.parse_args()
    for name in [args.only] if args.only else measured:
        pairs = measured[name](args.rounds)
        low, high = pairs.interval_ms()
        print(
            f"{name}: {pairs.baseline_ms:.1f} ms, by a view {pairs.candidate_ms:.1f} ms, ratio {pairs.ratio:.3f},"
            f" added {pairs.added_ms:.1f} ms ({low:.1f} to {high:.1f}), {args.rounds} pairs, Linux {os.uname().release}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
