"""Images and registries that fail while srun needs them: a sentence, in time, and nothing left in store or node."""

from __future__ import annotations

import contextlib
import http.server
import os
import random
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from piolet.node.root import imagemounts

from tests.cluster import leftovers
from tests.cluster.faults import Faults, assert_sentence, elapsed, end, kill
from tests.cluster.support import busybox_layer
from tests.support import oci
from tests.support.registry import Registry, free_port, reply, sham
from tests.support.waiting import wait_until
from tools.cluster import cgroup, processes
from tools.cluster.accounts import numbers

Handler = http.server.BaseHTTPRequestHandler
MANIFEST = f"{oci.OCI}.manifest.v1+json"
MOMENTS = 10
USERS, EACH = ("alice", "bob"), 4


@pytest.fixture
def image(faults: Faults) -> Iterator[str]:
    """An image of its own for a test, in the registry and in nobody's store; removed from the store afterwards."""
    name = f"faults-{random.SystemRandom().randrange(1 << 40):x}"
    reference = faults.cluster.push(name, [busybox_layer(oci.file("blob", os.urandom(6 << 20)))], Env=["PATH=/bin"])
    yield reference
    for user in USERS:
        if f"{reference} " in faults.cluster.run(user, "piolet", "image", "list").good():
            faults.cluster.remove_image(reference, user)


def edf_of(faults: Faults, reference: str) -> Path:
    return faults.cluster.edf("alice", f'image = "{reference}"\n')


def store_file(faults: Faults, reference: str, user: str = "alice") -> Path:
    """Return the SquashFS file of an image that is in the store."""
    listed = faults.cluster.run(user, "piolet", "env", "render", edf_of(faults, reference)).good()
    digest = re.search(r"sha256:([0-9a-f]{64})", listed)
    assert digest, listed
    return faults.cluster.layout.images / f"sha256-{digest[1]}.sqsh"


# -- the image itself


@pytest.mark.parametrize("harm", ["truncated", "rubbish"])
def test_a_damaged_image(faults: Faults, image: str, harm: str) -> None:
    with faults.nothing_left():
        faults.cluster.run("alice", "piolet", "image", "pull", image).good()
        path = store_file(faults, image)
        with path.open("r+b") as file:
            if harm == "truncated":
                file.truncate(path.stat().st_size // 2)
            else:
                file.write(os.urandom(4096))
        refused = faults.srun("alice", "-w", "node1", "true", edf=edf_of(faults, image))
        assert_sentence(refused, "node node1: cannot mount the image sha256:", "piolet image rm")
        faults.srun("alice", "-w", "node1", "true").good()
        # What the hint says helps.
        assert "1 of 1 images cannot be trusted" in faults.cluster.run("alice", "piolet", "image", "verify", image).err
        faults.cluster.remove_image(image)
        faults.srun("alice", "-w", "node1", "cat", "/marker", edf=edf_of(faults, image)).good()
        faults.restart_pioletd("node1")


def test_no_loop_device(faults: Faults, image: str) -> None:
    """/dev/loop-control is covered: one sentence; a pioletd that starts then has users' squashfuse serve the image."""
    with faults.nothing_left():
        faults.cluster.run("alice", "piolet", "image", "pull", image).good()
        faults.restart_pioletd("node1")
        # It listens before it has tried what the kernel can.
        wait_until((faults.root("node1") / "run/piolet" / imagemounts.FILE).exists, 10, "pioletd's choice")
        cover = faults.on_node("node1", "mount", "--bind", "/dev/null", "/dev/loop-control")
        subprocess.run(cover, check=True)
        try:
            refused = faults.srun("alice", "-w", "node1", "true", edf=edf_of(faults, image))
            assert_sentence(refused, "node node1: cannot mount the image sha256:", "/dev/loop-control")
            faults.restart_pioletd("node1")
            served = faults.srun("alice", "-w", "node1", "cat", "/proc/mounts", edf=edf_of(faults, image))
            assert " fuse.squashfuse " in served.good() or "lowerdir=" in served.out
            assert "loop" not in served.out.splitlines()[0]
        finally:
            subprocess.run(faults.on_node("node1", "umount", "/dev/loop-control"), check=True)
            faults.restart_pioletd("node1")
        faults.srun("alice", "-w", "node1", "true", edf=edf_of(faults, image)).good()
        faults.restart_pioletd("node1")


def test_an_image_is_removed_while_it_is_used(faults: Faults, image: str) -> None:
    edf = edf_of(faults, image)
    with faults.nothing_left():
        words = ["sh", "-c", "read line; cat /blob | wc -c"]
        srun = faults.cluster.start("alice", "srun", "-w", "node2", f"--environment={edf}", *words)
        faults.wait_tasks("read line", 1, 30)
        path = store_file(faults, image)
        faults.cluster.remove_image(image)
        assert not path.exists()
        again = faults.srun("bob", "-w", "node2", "cat", "/marker", edf=edf)
        assert again.good() == "in the image\n", "it is pulled again"
        done = end(srun, stdin="go\n")
        assert (done.status, done.out.strip()) == (0, str(6 << 20)), done
        # Only now the image has been mounted anew, so the removed file's loop device is gone.
        wait_until(lambda: not deleted_loops(faults), 5, "the end of the removed file's loop device")


def test_an_image_is_removed_between_srun_and_the_node(faults: Faults, image: str) -> None:
    """An salloc made the definition, the image went: the step says what to do."""
    edf = edf_of(faults, image)
    with faults.nothing_left():
        faults.cluster.run("alice", "piolet", "image", "pull", image).good()
        words = ["-w", "node1", f"--environment={edf}", "sh", "-c", "echo ready; read line; srun true"]
        salloc = faults.cluster.start("alice", "salloc", *words)
        assert salloc.stdout is not None and salloc.stdout.readline() == "ready\n"
        faults.cluster.remove_image(image)
        refused = end(salloc, stdin="go\n")
        assert_sentence(refused, "node node1: the image sha256:", "is not in the store", "piolet image pull")


def deleted_loops(faults: Faults) -> list[str]:
    return [name for name in leftovers.take(faults.cluster.layout).found["loop device"] if "deleted" in name]


# -- the registry


def html(handler: Handler) -> None:
    reply(handler, 200, b"<html>Please log in to the network</html>", "text/html")


def broken(handler: Handler) -> None:
    reply(handler, 500, b"", "text/plain")


def rubbish(handler: Handler) -> None:
    reply(handler, 200, os.urandom(300), MANIFEST)


@pytest.mark.parametrize("answer", [html, broken, rubbish])
def test_a_registry_answers_rubbish(faults: Faults, answer: object) -> None:
    with faults.nothing_left(), sham(answer) as address:  # type: ignore[arg-type]
        began = time.monotonic()
        refused = faults.srun("alice", "true", edf=edf_of(faults, f"{address}/app:1"))
        assert_sentence(refused, f"{address}/app:1")
        assert elapsed(began) < 20 and "srun: error" not in refused.err


def test_the_registry_is_down(faults: Faults) -> None:
    with faults.nothing_left():
        began = time.monotonic()
        refused = faults.srun("alice", "true", edf=edf_of(faults, f"127.0.0.1:{free_port()}/app:1"))
        assert_sentence(refused, "did not answer", "hint")
        assert elapsed(began) < 20
        faults.srun("bob", "true").good()


def test_a_registry_with_truncated_blobs(faults: Faults, tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry")
    try:
        oci.build(tmp_path / "image", [[oci.file("a", os.urandom(100_000))]])
        reference = registry.push(tmp_path / "image", "app:1")
        for blob in (tmp_path / "registry/data").rglob("blobs/sha256/*/*/data"):
            if blob.stat().st_size > 50_000:
                os.truncate(blob, blob.stat().st_size - 7)
        with faults.nothing_left():
            assert_sentence(faults.srun("alice", "true", edf=edf_of(faults, reference)), reference)
    finally:
        registry.stop()


@contextlib.contextmanager
def other_service(faults: Faults, **settings: str | int) -> Iterator[Path]:
    """An image service beside the cluster's, asked by every srun meanwhile; gives the folder of its store."""
    room = faults.cluster.room("alice")
    for name in ("store", "run"):
        (room / name).mkdir()
        os.chown(room / name, *numbers("piolet-images"))
    toml = room / "piolet.toml"
    images = {"store": str(room / "store" / "images"), "socket": str(room / "run" / "images.sock"), **settings}
    lines = [f"{name} = {value if isinstance(value, int) else repr(value)}" for name, value in images.items()]
    toml.write_text("\n".join(["[images]", *lines]) + "\n")
    uid, gid = numbers("piolet-images")
    program = [str(faults.cluster.layout.venv_bin / "piolet-imaged"), "--config", str(toml)]
    argv = ["setpriv", f"--reuid={uid}", f"--regid={gid}", "--init-groups", *program]
    log = room / "log"
    process = processes.spawn("other-imaged", argv, log, faults.group, {"PATH": os.environ["PATH"]})
    try:
        wait_until(lambda: (room / "run/images.sock").exists(), what="the other service")
        with faults.plugin_arguments(config=toml):
            yield room / "store"
    finally:
        processes.terminate(process, signal.SIGTERM)
        wait_until(lambda: not processes.alive(process), 10, "the end of the other service")
        shutil.rmtree(room)


def test_a_registry_that_never_answers(faults: Faults) -> None:
    """Bounded by pull_timeout_s, and at any time by Ctrl-C."""
    done = threading.Event()

    def silent(_: Handler) -> None:
        done.wait(60)

    with faults.nothing_left(), other_service(faults, pull_timeout_s=2), sham(silent) as address:
        edf = edf_of(faults, f"{address}/app:1")
        began = time.monotonic()
        waiting = faults.cluster.start("bob", "srun", f"--environment={edf}", "true")
        refused = faults.srun("alice", "true", edf=edf)
        assert_sentence(refused, f"{address}/app:1")
        assert elapsed(began) < 15
        end(waiting)
        interrupted = faults.cluster.start("alice", "srun", f"--environment={edf}", "true")
        wait_until(lambda: "skopeo" in commands(faults), what="the question to the registry")
        began = time.monotonic()
        interrupted.send_signal(signal.SIGINT)
        assert end(interrupted).status != 0 and elapsed(began) < 3
        done.set()


def test_the_stores_disk_is_full(faults: Faults, image: str) -> None:
    """The image needs more than the store's file system of 5 MiB has."""
    with faults.nothing_left(), small_disk(faults) as disk, other_service(faults, store=str(disk / "images")):
        refused = faults.srun("alice", "true", edf=edf_of(faults, image))
        assert_sentence(refused, "no space left in the image store", "hint")
        assert [
            path for path in disk.rglob("*") if path.is_file() and path.suffix != ".process" and path.name != "swept"
        ] == []


@contextlib.contextmanager
def small_disk(faults: Faults) -> Iterator[Path]:
    disk = faults.cluster.room("alice")
    uid, gid = numbers("piolet-images")
    options = f"size=5m,mode=755,uid={uid},gid={gid}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "piolet-test", str(disk)], check=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


# -- the service


def commands(faults: Faults) -> str:
    return " ".join(leftovers.command_of(pid) for pid in faults.members())


def importing(faults: Faults) -> list[int]:
    """Return the children of the image service: each imports an image."""
    return faults.children(faults.daemon("piolet-imaged").pid)


def test_the_importing_process_is_killed_at_random_moments(faults: Faults, image: str) -> None:
    """Each time srun says so, or was faster; and the next one works. The seed is fixed, the scheduler is not."""
    chance = random.Random(7)
    edf = edf_of(faults, image)
    refused = 0
    with faults.nothing_left():
        for _ in range(MOMENTS):
            srun = faults.cluster.start("alice", "srun", "-w", "node1", f"--environment={edf}", "true")
            wait_until(lambda run=srun: importing(faults) or run.poll() is not None, what="the import")  # type: ignore[misc]
            limit = time.monotonic() + chance.uniform(0.0, 0.5)
            wait_until(lambda at=limit, run=srun: time.monotonic() > at or run.poll() is not None)  # type: ignore[misc]
            for pid in importing(faults):
                kill(pid)
            done = end(srun)
            if done.status != 0:
                refused += 1
                assert_sentence(done, "ended before it was done")
            else:
                faults.cluster.remove_image(image)
        faults.srun("alice", "-w", "node1", "cat", "/marker", edf=edf).good()
        assert refused > 0, "no import was hit"
        faults.restart_pioletd("node1")


def test_the_image_service_is_killed_during_a_pull(faults: Faults, image: str) -> None:
    edf = edf_of(faults, image)
    with faults.nothing_left():
        srun = faults.cluster.start("alice", "srun", "-w", "node1", f"--environment={edf}", "true")
        wait_until(lambda: importing(faults), what="the import")
        kill(faults.daemon("piolet-imaged").pid)
        assert_sentence(end(srun), "image service", "piolet-imaged.service")
        # What is in the store and known to the user needs no service.
        faults.srun("alice", "-w", "node1", "true").good()
        refused = faults.srun("alice", "-w", "node1", "true", edf=edf)
        assert_sentence(refused, "the image service does not answer", "piolet-imaged.service")
        wait_until(lambda: not re.search("skopeo|mksquashfs|images.worker", commands(faults)), 5, "the workers' end")
        faults.start_imaged()
        faults.srun("alice", "-w", "node1", "cat", "/marker", edf=edf).good()


# -- one conversion, no traffic


class Watcher(threading.Thread):
    """Collects every mksquashfs that runs, by pid, until `stop`."""

    def __init__(self, group: Path) -> None:
        super().__init__(daemon=True)
        self._group, self._over = group, threading.Event()
        self.seen: set[int] = set()

    def run(self) -> None:
        while not self._over.wait(0.005):
            for pid in cgroup.members(self._group):
                if pid not in self.seen and leftovers.command_of(pid).startswith("/usr/bin/mksquashfs"):
                    self.seen.add(pid)

    def stop(self) -> set[int]:
        self._over.set()
        self.join()
        return self.seen


def requests(faults: Faults) -> list[str]:
    """Return the requests that the registry has noted."""
    text = (faults.cluster.layout.log / "registry.log").read_text("utf-8", "replace")
    return re.findall(r'"((?:GET|HEAD) /v2/[^"]*) HTTP', text)


def test_one_conversion_for_all_who_ask_at_once(faults: Faults, image: str) -> None:
    edf = edf_of(faults, image)
    with faults.nothing_left():
        watcher, before = Watcher(faults.group), len(requests(faults))
        watcher.start()
        with ThreadPoolExecutor(len(USERS) * EACH) as pool:
            runs = [pool.submit(faults.srun, user, "cat", "/marker", edf=edf) for user in USERS * EACH]
            assert [run.result().good() for run in runs] == ["in the image\n"] * (len(USERS) * EACH)
        assert len(watcher.stop()) == 1
        blobs = [line for line in requests(faults)[before:] if line.startswith("GET") and "/blobs/" in line]
        # Of the layer and the configuration: once to convert, and once for the other user, who has to show that
        # they may have it (a name on loopback proves nothing).
        assert len(blobs) <= 8, blobs


def test_the_second_srun_asks_no_registry(faults: Faults, image: str) -> None:
    edf = edf_of(faults, image)
    with faults.nothing_left():
        faults.srun("alice", "true", edf=edf).good()
        before = len(requests(faults))
        assert before > 0, "the log is not read"
        faults.srun("alice", "true", edf=edf).good()
        faults.srun("alice", "-N4", "true", edf=edf_of(faults, image)).good()  # another file, the same image
        assert requests(faults)[before:] == []
