"""Images on their way from a registry into a step: once for all, known afterwards, refused when they are no good."""

from __future__ import annotations

import http.server
import os
import signal
import stat
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.cluster.nodes import refused
from tests.cluster.support import Cluster, Result, busybox_layer
from tests.support import oci
from tests.support.registry import Registry, sham
from tests.support.waiting import wait_until

SETTINGS = {"Env": ["PATH=/bin"]}


@pytest.fixture
def registry(cluster: Cluster) -> Iterator[Registry]:
    """A registry of its own that counts what it is asked."""
    running = Registry(cluster.room("alice") / "registry")
    yield running
    running.stop()


def unique() -> oci.Entry:
    """Return a file that makes an image unlike any other: what is in the store already proves nothing."""
    return oci.file("once", os.urandom(16))


def blobs(registry: Registry) -> list[str]:
    return [request for request in registry.requests if "/blobs/" in request]


def test_many_steps_that_ask_at_once_cause_one_pull(
    cluster: Cluster, registry: Registry, many: ThreadPoolExecutor, tmp_path: Path
) -> None:
    oci.build(tmp_path / "image", [busybox_layer(), [unique()]], settings=SETTINGS)
    edf = cluster.edf("alice", f'image = "{registry.push(tmp_path / "image", "app:1")}"\n')

    def step(number: int) -> Result:
        return cluster.srun("alice" if number % 2 else "bob", edf, "-N1", "cat", "/marker")

    for done in many.map(step, range(8)):
        assert done.good() == "in the image\n"
    # Two layers and a configuration, each once.
    assert len(blobs(registry)) == len(set(blobs(registry))) == 3, registry.requests

    registry.requests.clear()
    for user in ("alice", "bob"):
        assert cluster.srun(user, edf, "-N4", "cat", "/marker").good() == "in the image\n" * 4
    assert registry.requests == []
    registry.stop()
    again = cluster.edf("bob", edf.read_text() + '[env]\nNEW = "yes"\n')
    assert cluster.srun("bob", again, "cat", "/marker").good() == "in the image\n"


def test_a_tag_that_moved_is_followed_when_asked(cluster: Cluster, registry: Registry, tmp_path: Path) -> None:
    for word in ("old", "new"):
        layers = [busybox_layer(), [unique(), oci.file("marker", f"{word}\n".encode())]]
        oci.build(tmp_path / word, layers, settings=SETTINGS)
    reference = registry.push(tmp_path / "old", "app:latest")
    edf = cluster.edf("alice", f'image = "{reference}"\n')
    assert cluster.srun("alice", edf, "cat", "/marker").good() == "old\n"
    registry.push(tmp_path / "new", "app:latest")
    assert cluster.srun("alice", edf, "cat", "/marker").good() == "old\n"
    cluster.run("alice", "piolet", "image", "pull", "--refresh", reference).good()
    assert cluster.srun("alice", edf, "cat", "/marker").good() == "new\n"


@pytest.mark.parametrize("form", ["docker", "zstd", "plain", "by digest"])
def test_forms_of_images(cluster: Cluster, registry: Registry, tmp_path: Path, form: str) -> None:
    layers = [busybox_layer(), [unique(), oci.whiteout("bin/ls"), oci.file("added", b"yes\n")]]
    packed = [oci.pack(layer, {"zstd": "zstd", "plain": ""}.get(form, "gzip")) for layer in layers]
    digest = oci.build(tmp_path / "image", packed, docker=form == "docker", settings=SETTINGS)
    reference = registry.push(tmp_path / "image", "form:1")
    if form == "by digest":
        reference = f"{reference.removesuffix(':1')}@{digest}"
    edf = cluster.edf("alice", f'image = "{reference}"\n')
    done = cluster.srun("alice", edf, "sh", "-c", "cat /marker /added; [ -e /bin/ls ] || echo gone")
    assert done.good() == "in the image\nyes\ngone\n"


def test_the_way_of_writing_with_a_hash(cluster: Cluster, tiny: str) -> None:
    edf = cluster.edf("alice", f'image = "{tiny.replace("/", "#", 1)}"\n')
    assert cluster.srun("alice", edf, "cat", "/marker").good() == "in the image\n"


@pytest.mark.parametrize("fault", ["architecture", "dots", "absolute", "broken", "diff_id"])
def test_images_that_are_no_good(cluster: Cluster, registry: Registry, tmp_path: Path, fault: str) -> None:
    layers: list[list[oci.Entry] | oci.Packed] = [busybox_layer(unique())]
    more: dict[str, object] = {}
    word = ""
    if fault == "architecture":
        more["architecture"] = "s390x"
        word = "s390x"
    elif fault == "dots":
        layers.append([oci.file("../../escaped", b"x")])
        word = "escaped"
    elif fault == "absolute":
        layers.append([oci.symlink("out", "/tmp"), oci.file(f"out/piolet-escaped-{os.getpid()}", b"x")])
    elif fault == "broken":
        good = oci.pack(busybox_layer(unique()))
        layers.append(oci.Packed(good.data[: len(good.data) // 2], good.diff_id, "gzip"))
    else:
        more["diff_ids"] = ["sha256:" + "1" * 64]
    oci.build(tmp_path / "image", layers, settings=SETTINGS, **more)  # type: ignore[arg-type]
    edf = cluster.edf("alice", f'image = "{registry.push(tmp_path / "image", f"bad:{fault}")}"\n')
    done = cluster.srun("alice", edf, "cat", "/marker")
    escaped = Path(f"/tmp/piolet-escaped-{os.getpid()}").exists()
    assert not escaped
    if fault == "absolute":
        # What lies behind a link stays in the image, or is refused; it never gets out.
        assert done.status == 0 or "piolet: error: " in done.err
        return
    assert done.status == 1
    assert done.out == ""
    assert done.err.count("piolet: error: ") == 1, done.err
    assert word in done.err
    assert "Traceback" not in done.err


def test_the_command_for_images(cluster: Cluster, registry: Registry, tmp_path: Path) -> None:
    oci.build(tmp_path / "image", [busybox_layer(unique())], settings=SETTINGS)
    reference = registry.push(tmp_path / "image", "listed:1")
    cluster.run("alice", "piolet", "image", "pull", reference).good()
    edf = cluster.edf("alice", f'image = "{reference}"\n')
    listed = cluster.run("alice", "piolet", "image", "list").good()
    assert reference in listed
    assert cluster.srun("alice", edf, "cat", "/marker").good() == "in the image\n"
    assert "it is public, and stays" in cluster.run("alice", "piolet", "image", "rm", reference).good()
    cluster.run("alice", "piolet", "image", "pull", reference).good()
    cluster.remove_image(reference)
    assert reference not in cluster.run("alice", "piolet", "image", "list").good()
    # It is pulled anew when it is wanted again.
    registry.requests.clear()
    assert cluster.srun("alice", edf, "cat", "/marker").good() == "in the image\n"
    assert blobs(registry)


def test_a_users_own_store(cluster: Cluster, registry: Registry, tmp_path: Path) -> None:
    oci.build(tmp_path / "image", [busybox_layer(unique())], settings=SETTINGS)
    reference = registry.push(tmp_path / "image", "own:1")
    room = cluster.room("alice")
    edf = cluster.edf("alice", f'image = "{reference}"\n')
    done = cluster.srun("alice", edf, "-N2", "cat", "/marker", env={"EDF_IMAGESTORE": f"{room}/store"})
    assert done.good() == "in the image\n" * 2
    files = list((room / "store").rglob("*.sqsh"))
    assert len(files) == 1
    assert files[0].stat().st_uid == room.stat().st_uid


def test_a_store_of_a_group(cluster: Cluster, registry: Registry, tmp_path: Path, many: ThreadPoolExecutor) -> None:
    """Who names the group believes its members, and what one has pulled the others have; nobody else has it."""
    oci.build(tmp_path / "image", [busybox_layer(unique())], settings=SETTINGS)
    reference = registry.push(tmp_path / "image", "team:1")
    room = cluster.room("alice")
    edf = cluster.edf("alice", f'image = "{reference}"\n')
    ours = {"EDF_IMAGESTORE": f"{room}/store", "EDF_IMAGESTORE_GROUP": "pioletlab"}
    assert cluster.srun("alice", edf, "cat", "/marker", env=ours).good() == "in the image\n"
    assert stat.S_IMODE((room / "store").stat().st_mode) == 0o2770
    registry.requests.clear()
    assert cluster.srun("bob", edf, "-N2", "cat", "/marker", env=ours).good() == "in the image\n" * 2
    assert registry.requests == []
    row = cluster.run("bob", "piolet", "image", "list", env=ours).good().splitlines()[1]
    assert row.startswith(reference) and "group pioletlab" in row
    # Without the word that bob believes them, he does not; nor where he is not one of them.
    refused(cluster.srun("bob", edf, "true", env={"EDF_IMAGESTORE": f"{room}/store"}), "belongs to uid")
    others = {**ours, "EDF_IMAGESTORE_GROUP": "alicegrp"}
    refused(cluster.srun("bob", edf, "true", env=others), "you are not in the group alicegrp")
    refused(cluster.srun("alice", edf, "true", env=others), "is of the group")
    # All is everybody's of the group: bob removes what alice has pulled, and has it anew for both.
    assert "removed" in cluster.run("bob", "piolet", "image", "rm", reference, env=ours).good()
    registry.requests.clear()
    both = many.map(lambda user: cluster.srun(user, edf, "cat", "/marker", env=ours).good(), ("bob", "alice"))
    assert list(both) == ["in the image\n"] * 2
    assert len(blobs(registry)) == len(set(blobs(registry))), "it is fetched by one of them"
    left = [path for name in ("tmp", "leases", "kept") for path in (room / "store" / name).iterdir()]
    assert left == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_pull_that_hangs_can_be_interrupted(cluster: Cluster, number: signal.Signals) -> None:
    asked, release = threading.Event(), threading.Event()

    def hang(handler: http.server.BaseHTTPRequestHandler) -> None:
        asked.set()
        release.wait(120)

    with sham(hang) as address:
        edf = cluster.edf("alice", f'image = "{address}/some/image:1"\n')
        process = cluster.start("alice", "srun", f"--environment={edf}", "echo", "ran")
        try:
            wait_until(asked.is_set, what="the question to the registry")
            process.send_signal(number)
            # The registry answers after two minutes, if at all.
            out, _ = process.communicate(timeout=60)
        finally:
            release.set()
            process.kill()
    assert process.returncode != 0
    assert out == ""
    found = cluster.run("alice", "pgrep", "-u", "alice", "-f", str(edf))
    assert found.out.split() in ([], [str(process.pid)])
