"""Attacks by what is mounted: images of others, files of the host, links, paths that change as they are looked at."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.attacks.attack import Broken, attack, by_kernel
from tests.cluster.faults import Faults, end
from tests.cluster.support import BUSYBOX, Cluster, busybox_layer
from tests.support import oci

LOOK = """\
import os
from dataclasses import dataclass

from piolet.api import Context, Eval, Verdict


@dataclass(frozen=True)
class Look(Eval):
    name = "look"

    def check(self, context: Context) -> Verdict:
        seen = []
        for base, folders, files in os.walk("/run/piolet/mnt", followlinks=False):
            seen += [base + "/" + name for name in folders + files if base != "/run/piolet/mnt"]
            if len(seen) > 5:
                break
        with open("/proc/self/mountinfo") as file:
            seen += [line for line in file if "squashfs" in line and "fuse" not in line]
        return Verdict("fail", " ".join(seen)[:400]) if seen else Verdict("pass")
"""


@pytest.fixture
def mounted(faults: Faults) -> None:
    """Bob's image is mounted on both nodes."""
    faults.srun("bob", "-N2", "true").good()


@attack("images are mounted where users' processes are")
def test_all_of_run_is_mounted_to_see_the_images_of_others(cluster: Cluster, faults: Faults, mounted: None) -> None:
    """Row 3. Promise: what is mounted for bob is attached nowhere that alice's processes can walk to, while his step
    runs and after."""
    edf = cluster.edf("alice", f'image = "{image_of(faults)}"\nmounts = ["/run:/x"]\n')
    script = "ls -d /x/piolet/mnt/images/*; cat /x/piolet/mnt/images/*/marker; grep mnt/images /proc/mounts; true"
    done = cluster.srun("alice", edf, "sh", "-c", script)
    done.good()
    if done.out.strip():
        raise Broken(f"alice sees what is mounted on the node: {done.out[:300]}")


@attack("images are mounted where users' processes are")
def test_an_eval_looks_for_the_images_of_others(cluster: Cluster, faults: Faults, mounted: None) -> None:
    """Row 3. The same promise, attacked by an eval, which runs in no container."""
    room = cluster.room("alice")
    cluster.write("alice", room / "look.py", LOOK)
    cluster.write("alice", room / "p.yaml", "name: p\nevals:\n- {name: look, type: look.Look}\n")
    done = cluster.run("alice", "srun", "-N1", "--vet=p.yaml,retries=0", "true", cwd=room)
    if done.status != 0 and ("/run/piolet/mnt" in done.both or "squashfs" in done.both):
        raise Broken(f"an eval of alice's sees what is mounted for others: {done.err[:400]}")
    done.good()


@attack("images are mounted where users' processes are")
def test_the_root_of_squashfuse_leads_to_the_images_of_others(cluster: Cluster, faults: Faults, mounted: None) -> None:
    """Row 3. The same promise, attacked by way of /proc/PID/root and /proc/PID/mountinfo of alice's own squashfuse."""
    with own_image(cluster, faults) as pids:
        assert pids
        script = (
            "for p in "
            + " ".join(map(str, pids))
            + "; do ls -d /proc/$p/root/run/piolet/mnt/*/* /proc/$p/cwd/run/piolet"
            "/mnt/*/*; grep ' - squashfs ' /proc/$p/mountinfo; done 2>/dev/null; true"
        )
        done = subprocess.run(
            faults.on_node("node1", "sh", "-c", script, user="alice"), capture_output=True, text=True, check=True
        )
    if done.stdout:
        raise Broken(f"squashfuse leads to what is mounted for others: {done.stdout[:300]}")


@attack("binds of the host keep suid")
def test_a_setuid_program_of_the_host_in_a_container(cluster: Cluster, faults: Faults) -> None:
    """Row 13. Promise: nothing in a container is mounted with suid, binds of the host's directories neither."""
    edf = cluster.edf("alice", f'image = "{image_of(faults)}"\nmounts = ["/usr/bin:/x", "/scratch/alice"]\n')
    out = cluster.srun("alice", edf, "cat", "/proc/self/mountinfo").good()
    without = []
    for line in out.splitlines():
        fields = line.split()
        kind = line.partition(" - ")[2].split()[0]
        if "nosuid" not in fields[5].split(",") and kind not in ("proc", "sysfs", "devtmpfs", "devpts", "mqueue"):
            without.append(f"{fields[4]} ({kind})")
    if without:
        raise Broken(f"mounted with suid in a container: {', '.join(without)}")


def image_of(faults: Faults) -> str:
    return faults.edf.read_text("utf-8").split('"')[1]


class own_image:  # noqa: N801 - a context manager
    """A step of alice's on node1 in a SquashFS file of her own; gives the pids of its squashfuse."""

    def __init__(self, cluster: Cluster, faults: Faults, *options: str) -> None:
        self._cluster, self._faults, self._options = cluster, faults, options

    def __enter__(self) -> list[int]:
        cluster, faults = self._cluster, self._faults
        before = set(faults.tasks("squashfuse"))
        edf = cluster.edf("alice", f'image = "{own_sqsh(cluster)}"\n')
        words = ["srun", "-w", "node1", *self._options, f"--environment={edf}", "sh", "-c", "echo up; exec sleep 600"]
        self._srun = cluster.start("alice", *words)
        assert self._srun.stdout is not None
        line = self._srun.stdout.readline()
        assert line == "up\n", (line, self._srun.communicate())
        return [pid for pid in faults.tasks("squashfuse") if pid not in before]

    def __exit__(self, *_: object) -> None:
        self._srun.terminate()
        end(self._srun)


def own_sqsh(cluster: Cluster) -> Path:
    """Return a SquashFS file of alice's with a busybox."""
    room = cluster.room("alice")
    (room / "root/bin").mkdir(parents=True)
    (room / "root/bin/busybox").write_bytes(BUSYBOX.read_bytes())
    (room / "root/bin/busybox").chmod(0o755)
    for name in ("sh", "sleep", "cat", "ls", "id"):
        (room / "root/bin" / name).symlink_to("busybox")
    path = room / "own.sqsh"
    subprocess.run(["mksquashfs", str(room / "root"), str(path), "-quiet", "-no-progress"], check=True)
    cluster.give("alice", path)
    return path


PLACES = [
    "etc/resolv.conf",
    "etc/localtime",
    "etc/passwd",
    "etc/group",
    "etc/hosts",
    "tmp",
    "run/piolet",
    "home",
    "dev/shm",
]


@by_kernel("mounts are attached after the change of root, so that a link of the image ends in the image")
def test_links_of_an_image_direct_our_mounts(cluster: Cluster) -> None:
    """Class of CVE-2024-0132 (links of an image that direct what the runtime mounts or writes). Promise: where an image
    has links in the place of what is mounted or written, no file of the host changes, nor comes to be, nor is seen."""
    host = cluster.room("alice")
    canary = cluster.write("alice", host / "canary", "the host's\n")
    up = "../" * 8
    entries = [oci.symlink(place, f"{up}{str(canary)[1:]}") for place in PLACES[:5]]
    entries += [oci.symlink(place, f"{up}{str(host / place.replace('/', '-'))[1:]}") for place in PLACES[5:]]
    names = {entry.info.name for entry in entries}
    layer = [entry for entry in busybox_layer(etc=False) if entry.info.name not in names]
    reference = cluster.push("links", [[*layer, oci.folder("etc"), *{e.info.name: e for e in entries}.values()]])
    edf = cluster.edf("alice", f'image = "{reference}"\n')
    inside = " ".join(f"/{place}" for place in PLACES)
    done = cluster.srun("alice", edf, "/bin/sh", "-c", f"/bin/cat {inside}; echo x > /etc/resolv.conf; /bin/true")
    made = sorted(path.name for path in host.iterdir())
    print(done)
    if canary.read_text() != "the host's\n" or made != ["canary"]:
        raise Broken(f"a link of the image changed the host: {made}, {canary.read_text()[:100]}")
    if "the host's" in done.out:
        raise Broken("a link of the image showed a file of the host")


@by_kernel("a task's directory is looked up in the container, after the descriptors were closed")
@pytest.mark.parametrize("place", ["/proc/self/fd/{n}", "/proc/self/fd/{n}/../../..", "/proc/1/root", "/proc/1/cwd"])
def test_a_working_directory_that_is_a_descriptor(cluster: Cluster, faults: Faults, place: str) -> None:
    """Class of CVE-2024-21626 (a leaked descriptor as working directory). Promise: a task's directory is in its
    container, whatever the image or the definition says."""
    for n in (3, 5, 8) if place.endswith("{n}") else (7,):
        edf = cluster.edf("alice", f'image = "{image_of(faults)}"\nworkdir = "{place.format(n=n)}"\n')
        done = cluster.srun("alice", edf, "sh", "-c", "ls -d ./etc/shadow ../etc/shadow ../../etc/shadow")
        if "shadow" in done.out:
            raise Broken(f"with {place.format(n=n)} as its directory a task is outside: {done.out}")


@pytest.fixture
def forbidden(cluster: Cluster) -> Iterator[Path]:
    """A directory that is bob's alone."""
    room = cluster.room("bob")
    (room / "secret").write_text("bob's secret\n")
    cluster.give("bob", room / "secret")
    (room / "secret").chmod(0o600)
    room.chmod(0o700)
    yield room


@by_kernel("mount sources are opened by a worker that is the user")
def test_a_mount_source_becomes_a_link_while_the_container_is_built(
    cluster: Cluster, faults: Faults, forbidden: Path
) -> None:
    """Class of races between a look at a mount's source and its use. Promise: a source is opened as the user, so that
    swapping it for a link to bob's directory gives what alice has there anyway: nothing."""
    room = cluster.room("alice")
    (room / "mine").mkdir(mode=0o755)
    cluster.give("alice", room / "mine")
    (room / "bobs").symlink_to(forbidden)
    over = threading.Event()

    def swap() -> None:
        source = room / "source"
        while not over.is_set():
            for target in ("mine", "bobs"):
                (room / "next").symlink_to(room / target)
                (room / "next").rename(source)

    (room / "source").symlink_to(room / "mine")
    swapper = threading.Thread(target=swap, daemon=True)
    swapper.start()
    try:
        edf = cluster.edf("alice", f'image = "{image_of(faults)}"\nmounts = ["{room}/source:/x"]\n')
        for _ in range(6):
            done = cluster.srun("alice", edf, "cat", "/x/secret")
            if "bob's secret" in done.out:
                raise Broken("a swapped mount source showed bob's file")
    finally:
        over.set()
        swapper.join()


@by_kernel("a source is opened as the user, and the kernel knows no prefixes")
def test_a_path_that_only_begins_like_an_allowed_one(cluster: Cluster, faults: Faults, forbidden: Path) -> None:
    """Class of CVE-2026-48785 (a prefix taken for a directory). Promise: access to /some/where says nothing of
    /some/where2, nor a store at a path of one at a longer path."""
    room = cluster.room("alice")
    twin = Path(f"{room}2")
    twin.mkdir(mode=0o700)
    cluster.give("bob", twin)
    secret = cluster.write("bob", twin / "secret", "bob's secret\n", 0o600)
    image = image_of(faults)
    for source in (str(twin), f"{room}/../{twin.name}", f"{room}/./../{twin.name}/"):
        edf = cluster.edf("alice", f'image = "{image}"\nmounts = ["{source}:/x"]\n')
        if "bob's" in cluster.srun("alice", edf, "cat", "/x/secret").out:
            raise Broken(f"{source} was taken for a path below {room}")
    near = Path(f"{cluster.layout.images}2")
    near.mkdir(exist_ok=True)
    cluster.give("alice", near)
    try:
        (victim, *_) = cluster.layout.images.glob("*.sqsh")
        (near / victim.name).write_bytes(own_sqsh(cluster).read_bytes())
        cluster.give("alice", near / victim.name)
        edf = cluster.edf("alice", f'image = "{near / victim.name}"\n')
        out = cluster.srun("alice", edf, "cat", "/proc/mounts").out
        root = [line for line in out.splitlines() if "squashfs" in line and "fuse" not in line]
        if root:
            raise Broken(f"a file beside the store was mounted by the kernel: {root}")
    finally:
        subprocess.run(["rm", "-rf", str(near)], check=True)
        secret.unlink()


@by_kernel("/proc of others is the kernel's to guard")
@pytest.mark.parametrize("link", ["root", "cwd", "fd/0", "exe", "ns/mnt", "map_files", "environ", "mem"])
def test_links_of_proc_as_sources_of_mounts(cluster: Cluster, faults: Faults, link: str) -> None:
    """Class of links of /proc. Promise: the processes of pioletd and of root are no way to what the user has not."""
    monitor, server = faults.daemon("pioletd-node1").pid, faults.server("node1")
    for pid in (1, monitor, server):
        text = f'image = "{image_of(faults)}"\nmounts = ["/proc/{pid}/{link}:/x"]\n'
        done = cluster.srun("alice", cluster.edf("alice", text), "-w", "node1", "sh", "-c", "ls -a /x; cat /x")
        if done.status == 0 and done.out.strip() not in ("", "/x", "."):
            raise Broken(f"/proc/{pid}/{link} was mounted: {done.out[:200]}")


@by_kernel("each container is built by a process of its own")
def test_a_file_system_that_hangs_as_a_mount_source(cluster: Cluster, faults: Faults) -> None:
    """Class of hung FUSE. Promise: a source that does not answer holds up the step that names it, and no other; and
    that one can be cancelled."""
    place = cluster.room("alice") / "hung"
    (place / "x").mkdir(parents=True)
    edf = cluster.edf("alice", f'image = "{image_of(faults)}"\nmounts = ["{place}/x:/x"]\n')
    with faults.hung("node1", place) as hung:
        # What looks at the definition is on a machine where the file system answers.
        waiting = cluster.start("alice", "srun", "-w", "node1", f"--environment={edf}", "true")
        hung.wait_asked()
        took = []
        for _ in range(2):
            start = time.monotonic()
            faults.srun("bob", "-w", "node1", "true").good()
            took.append(time.monotonic() - start)
        faults.cancel_all()
        try:
            end(waiting)
        except AssertionError:
            raise Broken("a step that waits for a file system that hangs cannot be cancelled") from None
        if max(took) > 8:
            raise Broken(f"bob's step waited {max(took):.1f} s for alice's file system")


@by_kernel("a FIFO is a file like others to mount, and nobody opens it")
def test_a_fifo_as_a_mount_source(cluster: Cluster, faults: Faults) -> None:
    """Class of FIFOs. Promise: a FIFO or a socket as the source of a mount holds nothing up."""
    room = cluster.room("alice")
    os.mkfifo(room / "fifo")
    cluster.give("alice", room / "fifo")
    edf = cluster.edf("alice", f'image = "{image_of(faults)}"\nmounts = ["{room}/fifo:/x"]\n')
    try:
        cluster.srun("alice", edf, "true", timeout=20)
    except subprocess.TimeoutExpired:
        raise Broken("a step waits for a FIFO that is to be mounted") from None
