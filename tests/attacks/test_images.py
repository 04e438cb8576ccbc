"""Attacks on the image service and its store: archives, registries, what others have in the store, its room."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import os
import re
import subprocess
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.attacks import archives
from tests.attacks.attack import Broken, attack, by_kernel
from tests.cluster import leftovers
from tests.cluster.faults import Faults
from tests.cluster.support import Cluster, Result, busybox_layer
from tests.support import oci
from tests.support.registry import reply, sham
from tools.cluster.accounts import numbers

MANIFEST = f"{oci.OCI}.manifest.v1+json"
Handler = http.server.BaseHTTPRequestHandler


def state_of(store: Path) -> dict[str, str]:
    """Return every file of the store that says what an image is or who may use it, with its digest."""
    found = {}
    for path in store.rglob("*"):
        name = path.relative_to(store)
        if path.is_file() and name.parts[0] not in ("tmp", "leases"):
            found[str(name)] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def bring(cluster: Cluster, user: str, data: bytes, timeout: float = 60) -> Result:
    """Import an archive as a user, from a file of theirs."""
    path = cluster.room(user) / "hostile.tar"
    path.write_bytes(data)
    cluster.give(user, path)
    return cluster.run(user, "piolet", "image", "import", f"oci-archive:{path}", timeout=timeout)


@pytest.fixture
def secret(cluster: Cluster) -> Iterator[Path]:
    """A layer that only the image service may read: bob's, as it were."""
    path = cluster.layout.images / "secret-layer"
    path.write_bytes(oci.tar([oci.file("bobs-secret", b"only for the image service\n")]))
    os.chown(path, *numbers("piolet-images"))
    path.chmod(0o600)
    yield path
    path.unlink()


@attack("archives are unpacked")
def test_an_archive_writes_through_its_own_link(cluster: Cluster, faults: Faults) -> None:
    """Row 1, and the class of untar through links. Promise: only the image service writes its store, and only images
    that it converted. An entry that is a link to the store, and one below it that bears a stored image's name."""
    store = cluster.layout.images
    before = state_of(store)
    (victim, *_) = [name for name in before if name.endswith(".sqsh")]
    files = archives.image_files([[oci.file("a")]])
    for link, below in ((str(store), ""), ("../../../../../.." + str(store), ""), (str(store.parent), "images/")):
        names = [
            f"x/{below}{victim}",
            f"x/{below}{victim.removesuffix('sqsh')}access",
            f"x/{below}refs/public/new.json",
        ]
        hostile = [oci.symlink("x", link), *(oci.file(name, b"alice was here") for name in names)]
        bring(cluster, "alice", archives.tar(files, hostile))
        after = state_of(store)
        changed = [name for name in before if after.get(name) != before[name]]
        alien = [name for name in after if name not in before and name.endswith("new.json") and "public/new" in name]
        if changed or alien:
            for name in changed:  # what comes next is not to meet a broken store
                (store / name).unlink(missing_ok=True)
            raise Broken(f"an archive changed the store: {changed + alien}")


@attack("archives are unpacked")
def test_an_archive_writes_into_the_home_of_who_imports_it(cluster: Cluster) -> None:
    """Row 1. Promise: who imports a stranger's archive into a store of their own gets an image and nothing else."""
    room = cluster.room("bob")
    files = archives.image_files([[oci.file("a")]])
    hostile = [oci.symlink("x", str(room)), oci.file("x/.bashrc", b"evil\n")]
    path = cluster.room("bob") / "a.tar"
    path.write_bytes(archives.tar(files, hostile))
    cluster.run("bob", "piolet", "image", "import", f"oci-archive:{path}", env={"EDF_IMAGESTORE": str(room / "images")})
    if (room / ".bashrc").exists():
        raise Broken("the archive wrote a file into its importer's directory")


@attack("archives are unpacked")
@pytest.mark.parametrize("kind", ["symlink", "hardlink"])
def test_a_layer_that_is_a_link_to_a_file_of_the_service(cluster: Cluster, secret: Path, kind: str) -> None:
    """Row 2. Promise: an image has what its archive holds. With the right digest the file would be in the image, with a
    wrong one the message would tell what its digest is."""
    content = secret.read_bytes()
    layer = oci.Packed(content, oci.digest(content), "")
    make = oci.symlink if kind == "symlink" else oci.hardlink
    files = archives.image_files([layer])
    place = f"blobs/sha256/{layer.diff_id[7:]}"
    done = bring(cluster, "alice", archives.tar(files, (), {place: make(place, str(secret))}))
    if done.status == 0:
        raise Broken("a file that only the image service may read is in alice's image")
    wrong = oci.Packed(b"x" * len(content), oci.digest(content[1:]), "")
    files = archives.image_files([wrong])
    place = f"blobs/sha256/{oci.digest(wrong.data)[7:]}"
    done = bring(cluster, "alice", archives.tar(files, (), {place: make(place, str(secret))}))
    if oci.digest(content)[7:] in done.both or done.status == 0:
        raise Broken(f"the message tells the digest of a file of the service: {done.err}")


@attack("no bound for a conversion")
def test_an_archive_with_deep_names_eats_the_memory(cluster: Cluster, faults: Faults) -> None:
    """Row 6. Promise: a conversion has a bound, whatever its layers say. 80 KiB: chains of 15 directories of 250
    bytes each, one behind the other by way of links, with ten thousand files in the deepest."""
    entries, here = [], ""
    for chain in range(30):
        for number in range(15):
            here += ("/" if number else "") + chr(97 + number) * 250
            entries.append(oci.folder(here))
        entries.append(oci.symlink(f"l{chain}", here))
        here = f"l{chain}/"
    entries += [oci.file(f"{here}{number}") for number in range(10_000)]
    entries.append(oci.file("new", os.urandom(16)))  # an image that is in the store is not converted again
    data = archives.tar(archives.image_files([entries]))
    peak, over = [0], threading.Event()

    def watch() -> None:
        imaged, uid = faults.daemon("piolet-imaged").pid, str(numbers("piolet-images")[0])
        while not over.wait(0.02):
            # All that the service has started, also those that have a process between them and it.
            for pid in faults.members():
                if pid == imaged or leftovers.status(pid, "Uid").split()[:1] != [uid]:
                    continue
                found = leftovers.status(pid, "VmHWM").split()
                peak[0] = max(peak[0], int(found[0]) if found else 0)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        bring(cluster, "alice", data)
    finally:
        over.set()
        watcher.join()
    assert peak[0] > 0, "the conversion was not seen"
    if peak[0] > 700 << 10:
        raise Broken(f"{len(data) >> 10} KiB took {peak[0] >> 10} MiB of memory")


@attack("users may remove public images")
def test_the_first_user_of_a_public_image_removes_it(cluster: Cluster) -> None:
    """Row 8. Promise: a public image is nobody's to remove. Bob's queued job needs what alice pulled first."""
    image = cluster.push(f"public-{os.urandom(4).hex()}", [busybox_layer(oci.file("f", os.urandom(64)))])
    digest = cluster.run("alice", "piolet", "image", "pull", image).good().split()[1]
    cluster.run("bob", "piolet", "image", "pull", image).good()
    path = cluster.layout.images / f"{digest.replace(':', '-')}.sqsh"
    assert path.exists()
    for target in (image, digest):
        cluster.run("alice", "piolet", "image", "rm", target)
    cluster.run("alice", "piolet", "image", "prune", "--older-than", "0s")
    if not path.exists():
        raise Broken("alice removed the public image that bob's job needs")


@attack("no bound for a conversion")
def test_a_sparse_archive_unpacks_to_gigabytes(cluster: Cluster) -> None:
    """Row 10. Promise: what is unpacked is bounded by what came. Some kilobytes that hold one file of 4 GiB."""
    size = 4 << 30
    info = tarfile.TarInfo("zeros")
    info.type, info.size, info.mode = tarfile.REGTYPE, 512, 0o644
    records = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "zeros"}
    info.pax_headers = {**records, "GNU.sparse.realsize": str(size)}
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(info, io.BytesIO(b"1\n%d\n0\n".ljust(512, b"\0") % size))
    layer = oci.pack(out.getvalue())
    data = archives.tar(archives.image_files([layer]))
    done = bring(cluster, "alice", data, 120)
    if done.status == 0:
        raise Broken(f"{len(data) >> 10} KiB became an image of {size >> 30} GiB")


@by_kernel("the task never takes an identity from the image")
@pytest.mark.parametrize("user", ["4294967296", "-1", "0:0", "root", "4294967295:0"])
def test_an_image_says_who_its_user_is(cluster: Cluster, user: str) -> None:
    """Class of CVE-2026-46680 (a number for USER that overflows to root). Promise: a task is the job's user, whatever
    the image says."""
    image = cluster.push("user", [busybox_layer()], Env=["PATH=/bin"], User=user)
    edf = cluster.edf("alice", f'image = "{image}"\n')
    done = cluster.srun("alice", edf, "sh", "-c", "id -u; id -g; grep -E ^Cap /proc/self/status")
    uid, gid = numbers("alice")
    if done.status == 0 and (
        done.out.split()[:2] != [str(uid), str(gid)] or re.search("[1-9a-f]$", done.out, re.M) is None
    ):
        raise Broken(f"with USER {user} the task is {done.out}")
    if done.status == 0 and set(re.findall(r"^Cap\w+:\s*(\w+)$", done.out, re.MULTILINE)) != {"0" * 16}:
        raise Broken(f"with USER {user} the task has capabilities: {done.out}")


@by_kernel("the modes of the store's files")
def test_a_user_reads_and_lists_the_store(cluster: Cluster) -> None:
    """Class of CVE-2021-41103 (directories of images with too wide modes). Promise: the store's files are the service's
    and root's to read; others cannot list it, nor run a setuid program in it."""
    store = cluster.layout.images
    script = f"ls {store}; ls {store}/tmp; ls {store}/refs; cat {store}/*.sqsh; for f in {{sqsh,json}}; do cat {store}/"
    digest = next(path.name for path in store.glob("*.sqsh"))
    done = cluster.run("alice", "bash", "-c", f"{script}{digest.removesuffix('.sqsh')}.$f; done; touch {store}/mine")
    if done.out:
        raise Broken(f"alice read in the store: {done.out[:200]}")
    if (store / "mine").exists():
        raise Broken("alice wrote into the store")


@attack("a registry's answer has no bound")
def test_a_registry_that_never_stops_sending_a_layer(cluster: Cluster) -> None:
    """Class of endless blobs. Promise: of a layer no more is taken than the manifest promised."""
    endless_registry(cluster, "layer")


@by_kernel("skopeo takes no more than 4 MiB of a document")
@pytest.mark.parametrize("what", ["manifest", "config"])
def test_a_registry_that_never_stops_sending_a_document(cluster: Cluster, what: str) -> None:
    """Class of endless blobs. Promise: a manifest and a configuration have a bound, too."""
    endless_registry(cluster, what)


def endless_registry(cluster: Cluster, what: str) -> None:
    """Pull from a registry that does not stop sending `what`."""
    layer = oci.pack([oci.file("a", b"x")])
    config = json.dumps(
        {
            "architecture": oci.ARCHITECTURE,
            "os": "linux",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [layer.diff_id]},
        }
    ).encode()
    described = {"mediaType": f"{oci.OCI}.layer.v1.tar+gzip", "digest": oci.digest(layer.data), "size": len(layer.data)}
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": f"{oci.OCI}.config.v1+json", "digest": oci.digest(config), "size": len(config)},
            "layers": [described],
        }
    ).encode()
    sent = [0]

    def endless(handler: Handler) -> None:
        handler.send_response_only(200)
        handler.send_header("Content-Type", MANIFEST)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        chunk = b"10000\r\n" + bytes(65536) + b"\r\n"
        while sent[0] < 256 << 20:
            handler.wfile.write(chunk)
            sent[0] += 65536

    def answer(handler: Handler) -> None:
        path = handler.path
        if "/manifests/" in path:
            return endless(handler) if what == "manifest" else reply(handler, 200, manifest, MANIFEST)
        if path.endswith(oci.digest(config)):
            return endless(handler) if what == "config" else reply(handler, 200, config, "application/octet-stream")
        if path.endswith(oci.digest(layer.data)):
            return endless(handler) if what == "layer" else reply(handler, 200, layer.data, "application/octet-stream")
        return reply(handler, 200 if path == "/v2/" else 404, b"{}", "application/json")

    with sham(answer) as address:
        began = time.monotonic()
        done = cluster.run("alice", "piolet", "image", "pull", f"{address}/app:1", timeout=60)
        took = time.monotonic() - began
    if done.status == 0 or sent[0] >= 256 << 20 or took > 30:
        raise Broken(f"{sent[0] >> 20} MiB were taken from an endless {what}, in {took:.0f} s")


@by_kernel("skopeo follows redirects to http only, and a blob is checked by its digest")
@pytest.mark.parametrize("target", ["file:///etc/shadow", "http://127.0.0.1:{port}/internal"])
def test_a_registry_redirects_a_blob(cluster: Cluster, target: str) -> None:
    """Class of redirected blobs. Promise: what a redirect leads to is in no image and no message, unless it is what the
    manifest promised by digest."""
    asked: list[str] = []

    def internal(handler: Handler) -> None:
        asked.append(handler.path)
        reply(handler, 200, b"internal secret", "application/octet-stream")

    layer = oci.pack([oci.file("a", b"x")])
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": f"{oci.OCI}.config.v1+json", "digest": "sha256:" + "1" * 64, "size": 15},
            "layers": [{"mediaType": f"{oci.OCI}.layer.v1.tar+gzip", "digest": "sha256:" + "2" * 64, "size": 15}],
        }
    ).encode()
    assert layer.data

    with sham(internal) as other:
        place = target.format(port=other.rpartition(":")[2])

        def answer(handler: Handler) -> None:
            if "/manifests/" in handler.path:
                reply(handler, 200, manifest, MANIFEST)
            elif "/blobs/" in handler.path:
                handler.send_response_only(307)
                handler.send_header("Location", place)
                handler.send_header("Content-Length", "0")
                handler.end_headers()
            else:
                reply(handler, 200 if handler.path == "/v2/" else 404, b"{}", "application/json")

        with sham(answer) as address:
            done = cluster.run("alice", "piolet", "image", "pull", f"{address}/app:1", timeout=60)
    shadow = Path("/etc/shadow").read_text("utf-8").splitlines()[0]
    if done.status == 0 or "internal secret" in done.both or shadow in done.both:
        raise Broken(f"what a redirect led to was taken: {done.both}")


@by_kernel("nothing of ours opens a path of a user's to read it without a look at what it is")
@pytest.mark.parametrize("way", ["edf", "sqsh", "check"])
def test_a_fifo_in_the_place_of_a_file(cluster: Cluster, way: str) -> None:
    """Class of FIFOs. Promise: a FIFO where a file belongs holds nothing up: the command ends, with a word."""
    room = cluster.room("alice")
    fifo = room / ("e.toml" if way == "edf" else "i.sqsh")
    os.mkfifo(fifo)
    cluster.give("alice", fifo)
    edf = cluster.edf("alice", f'image = "{fifo}"\n') if way != "edf" else fifo
    words = {
        "edf": ["srun", f"--environment={edf}", "true"],
        "sqsh": ["srun", f"--environment={edf}", "true"],
        "check": ["piolet", "env", "check", str(edf)],
    }[way]
    try:
        done = cluster.run("alice", *words, timeout=15)
    except subprocess.TimeoutExpired:
        raise Broken(f"{' '.join(words)} waits for ever") from None
    assert done.status != 0 and "Traceback" not in done.both, done


@by_kernel("a user's own store is worked on by the user's own process")
def test_a_users_store_becomes_a_link_while_it_is_used(cluster: Cluster) -> None:
    """Class of races between a look at a path and its use. Promise: a user's own store is opened as that user, so that
    a swap for a link gives no more than what the user can open by themselves."""
    room = cluster.room("alice")
    link = room / "images"
    link.symlink_to(cluster.layout.images)
    cluster.give("alice", link)
    (victim, *_) = cluster.layout.images.glob("*.sqsh")
    before = state_of(cluster.layout.images)
    env = {"EDF_IMAGESTORE": str(link)}
    for words in (("list",), ("prune", "--older-than", "0s"), ("rm", f"sha256:{victim.stem.removeprefix('sha256-')}")):
        cluster.run("alice", "piolet", "image", *words, env=env)
    if state_of(cluster.layout.images) != before:
        raise Broken("a link in the place of alice's store changed the site's store")
