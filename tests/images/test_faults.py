"""Things that go wrong: registries that misbehave, killed processes, full disks."""

from __future__ import annotations

import http.server
import json
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.images.conftest import ALICE, BOB, SERVICE, Site, finish, needs_root
from tests.images.processes import children, parent, pids
from tests.support import oci
from tests.support.registry import Registry, free_port, reply, sham
from tests.support.waiting import wait_until

Handler = http.server.BaseHTTPRequestHandler


def html(handler: Handler) -> None:
    reply(handler, 200, b"<html><body>Welcome to the hotel's wireless network</body></html>", "text/html")


def wrong_json(handler: Handler) -> None:
    reply(handler, 200, b'{"schemaVersion": 2, "layers": 7, "config": []}', f"{oci.OCI}.manifest.v1+json")


def schema_1(handler: Handler) -> None:
    body = json.dumps({"schemaVersion": 1, "name": "a", "tag": "b", "fsLayers": [], "history": []}).encode()
    reply(handler, 200, body, "application/vnd.docker.distribution.manifest.v1+json")


def artifact(handler: Handler) -> None:
    blob = {"mediaType": "application/vnd.cncf.helm.config.v1+json", "digest": "sha256:" + "0" * 64, "size": 2}
    body = json.dumps({"schemaVersion": 2, "config": blob, "layers": []}).encode()
    reply(handler, 200, body, f"{oci.OCI}.manifest.v1+json")


def broken(handler: Handler) -> None:
    reply(handler, 500, b"", "text/plain")


def short(handler: Handler) -> None:
    reply(handler, 200, b'{"schemaVersion": 2', f"{oci.OCI}.manifest.v1+json", 5000)


def missing(handler: Handler) -> None:
    body = b'{"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]}'
    reply(handler, 200 if handler.path == "/v2/" else 404, body, "application/json")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (html, "not JSON"),
        (wrong_json, "is not an image manifest"),
        (schema_1, "a manifest of schema 1"),
        (artifact, "not a container image but an artifact"),
        (broken, "status code from registry 500"),
        (short, "unexpected EOF"),
        (missing, "manifest unknown"),
    ],
)
def test_registries_that_answer_rubbish(site: Site, answer: Callable[[Handler], None], said: str) -> None:
    with sham(answer) as address:
        refused = site.ask(ALICE, f"{address}/app:1")
    assert said in refused["error"], refused
    assert "Traceback" not in refused["error"] and "\n" not in refused["error"]
    assert site.leftovers() == [] and site.images() == []


def test_a_registry_that_hangs(site: Site) -> None:
    site.stop()
    site.settings["pull_timeout_s"] = 2
    site.start()
    done = threading.Event()

    def hang(_: Handler) -> None:
        done.wait(60)

    with sham(hang) as address:
        began = time.monotonic()
        refused = site.ask(ALICE, f"{address}/app:1")
        done.set()
    assert refused["kind"] == "RegistryUnreachable" and time.monotonic() - began < 20
    assert site.leftovers() == []


@needs_root()
def test_a_user_whose_registry_trickles_holds_up_nobody(site: Site, registry: Registry, image: Path) -> None:
    """Neither by taking every place, nor by having another's image in hand under a name of their own."""
    reference = registry.push(image, "app:1")
    manifest = json.loads((image / "manifest.json").read_bytes())
    trickling, done = threading.Semaphore(0), threading.Event()

    def trickle(handler: Handler) -> None:
        if "/blobs/" not in handler.path:
            # Each repository shows another image, the first one the very image that the other user wants.
            number = handler.path.split("/")[2]
            extra = {} if number == "0" else {"annotations": {"number": number}}
            body = (image / "manifest.json").read_bytes() if not extra else json.dumps(manifest | extra).encode()
            reply(handler, 200, body, f"{oci.OCI}.manifest.v1+json")
            return
        handler.send_response_only(200)
        handler.send_header("Content-Length", "100000000")
        handler.end_headers()
        trickling.release()
        while not done.wait(0.1):
            handler.wfile.write(b"x")

    with sham(trickle) as address:
        slow = [site.begin(ALICE, f"{address}/{number}:1") for number in range(4)]
        try:
            assert trickling.acquire(timeout=20)
            # Each asks for what is known first, and then for the pull.
            wait_until(lambda: site.log.count("uid 4301") >= 8, what="the last of the slow pulls")
            assert "error" not in site.ask(BOB, reference)
            oci.archive(image, site.room / "a.tar")
            made = site.piolet(BOB, "image", "import", str(site.room / "a.tar"))
            assert made.returncode == 0, made.stderr
        finally:
            done.set()
            for client in slow:
                client.kill()
                client.communicate()
    wait_until(lambda: site.leftovers() == [], what="the end of the slow pulls")


def test_truncated_blobs(site: Site, registry: Registry, image: Path) -> None:
    reference = registry.push(image, "app:1")
    for blob in (site.room / "registry/data").rglob("blobs/sha256/*/*/data"):
        if blob.read_bytes()[:2] == b"\x1f\x8b":
            blob.write_bytes(blob.read_bytes()[:-7])
    assert "error" in site.ask(ALICE, reference)
    assert site.leftovers() == [] and site.images() == []


def test_no_service(room: Path) -> None:
    site = Site(room)
    site.write_config()
    refused = site.ask(ALICE, "ubuntu:24.04")
    assert "does not answer" in refused["error"]
    assert "piolet-imaged.service" in refused["hint"] and "EDF_IMAGESTORE" in refused["hint"]


def slow_site(site: Site, registry: Registry) -> str:
    """Make conversions last until they are killed; return a reference."""
    script = site.room / "slow"
    script.write_text("#!/bin/sh\nexec sleep 1000\n")
    script.chmod(0o755)
    site.stop()
    site.settings["mksquashfs"] = str(script)
    site.start()
    oci.build(site.room / "slow-image", [[oci.file("a")]])
    return registry.push(site.room / "slow-image", "slow:1")


def test_a_killed_importer(site: Site, registry: Registry) -> None:
    reference = slow_site(site, registry)
    client = site.begin(ALICE, reference)
    wait_until(lambda: "sleep 1000" in children(site), what="the conversion")
    assert site.process is not None
    worker = [pid for pid in pids("images.worker") if parent(pid) == site.process.pid]
    os.kill(worker[0], signal.SIGKILL)
    refused = finish(client)
    assert "ended before it was done" in refused["error"]
    wait_until(lambda: "sleep 1000" not in children(site), what="the end of the worker's child")
    assert site.leftovers() == [] and site.images() == []
    site.stop()
    del site.settings["mksquashfs"]
    site.start()
    assert "error" not in site.ask(ALICE, reference)


@pytest.mark.parametrize("seed", range(3))
def test_the_service_is_killed_at_a_random_moment(site: Site, registry: Registry, seed: int) -> None:
    chance = random.Random(seed)
    oci.build(site.room / "i", [[oci.file(f"f{n}", os.urandom(1 << 20)) for n in range(10)]])
    reference = registry.push(site.room / "i", "app:1")
    client = site.begin(ALICE, reference)
    assert site.process is not None
    pid = site.process.pid
    limit = time.monotonic() + chance.uniform(0.05, 0.9)
    wait_until(lambda: time.monotonic() > limit or client.poll() is not None)
    workers = [child for child in pids("images.worker") if parent(child) == pid]
    site.process.kill()
    site.process.wait()
    finish(client)
    wait_until(lambda: not any(child in pids("images.worker") for child in workers), what="the workers' end")
    site.start()
    assert "error" not in site.ask(ALICE, reference)
    assert site.leftovers() == [] and len(site.images()) == 1
    assert list((site.store / "leases").iterdir()) == [], (
        "no heartbeat of the dead, and none of the living, who are idle"
    )
    assert subprocess.run(["unsquashfs", "-lc", site.store / site.images()[0]], capture_output=True).returncode == 0


@needs_root()
def test_two_services_share_a_store(site: Site, registry: Registry) -> None:
    """Another machine's service has the image in hand: one conversion, the other waits for it."""
    oci.build(site.room / "i", [[oci.file(f"f{n}", os.urandom(1 << 20)) for n in range(10)]])
    reference = registry.push(site.room / "i", "app:1")
    digest = oci.digest((site.room / "i/manifest.json").read_bytes())
    leases = site.store / "leases"
    other = leases / "0123456789abcdef.process"
    other.write_text(json.dumps({"where": "another machine", "pid": 1, "born": "1", "host": "far"}))
    lease = leases / f"{digest}.lease"
    lease.write_text("0123456789abcdef")
    for path in (other, lease):
        os.chown(path, SERVICE, SERVICE)
    client = site.begin(BOB, reference)
    beats = 0
    began = time.monotonic()
    while time.monotonic() - began < 4.5:  # longer than lease_stale_s: a living holder is waited for
        os.utime(other)
        beats += 1
        assert client.poll() is None and lease.read_text() == "0123456789abcdef"
        time.sleep(0.1)
    answer = finish(client)  # the heartbeats have ended: it is taken over
    assert "error" not in answer and any("another importer" in text for text in answer["said"])
    assert site.leftovers() == []


@pytest.fixture
def small_disk(room: Path) -> Iterator[Path]:
    """A store directory on a file system of 6 MiB."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a small tmpfs")
    place = room / "var"
    place.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m,mode=755", "piolet-test", place])
    if made.returncode != 0:
        pytest.skip("needs a root that may mount a tmpfs")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_the_disk_is_full(small_disk: Path, room: Path, registry: Registry) -> None:
    site = Site(room)
    site.start()
    try:
        oci.build(room / "big", [[oci.file("a", os.urandom(4 << 20))]])
        refused = site.ask(ALICE, registry.push(room / "big", "big:1"))
        assert "no space left" in refused["error"] and "prune" in refused["hint"]
        (small_disk / "filler").write_bytes(b"x" * (os.statvfs(small_disk).f_bavail * 4096 - 8192))
        oci.build(room / "tiny", [[oci.file("a", os.urandom(3000))]])
        refused = site.ask(ALICE, registry.push(room / "tiny", "tiny:1"))
        assert "no space left" in refused["error"], refused
        assert site.leftovers() == []
        (small_disk / "filler").unlink()
        assert "error" not in site.ask(ALICE, f"{registry.address}/tiny:1")
    finally:
        site.stop()


def test_the_port_is_closed(site: Site) -> None:
    refused = site.ask(ALICE, f"127.0.0.1:{free_port()}/app:1")
    assert refused["kind"] == "RegistryUnreachable" and "did not answer" in refused["error"]
    unknown = site.ask(ALICE, "no-such-host.invalid/app:1")
    assert unknown["kind"] == "RegistryUnreachable"


@needs_root()
def test_the_store_of_somebody_else_is_refused(room: Path) -> None:
    site = Site(room)
    site.store.mkdir(parents=True)
    site.store.chmod(0o777)
    with pytest.raises(AssertionError, match="belongs to uid 0"):
        site.start()
    assert not site.alive()
