"""Things that go wrong: registries that misbehave, killed processes, full disks, clients that attack."""

from __future__ import annotations

import array
import contextlib
import http.server
import json
import os
import random
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from piolet.images import protocol

from tests.images.conftest import ALICE, BOB, PYTHON, SERVICE, Site, become, finish, needs_root
from tests.images.test_pull import children
from tests.support import oci
from tests.support.registry import Registry, free_port, reply, sham
from tests.support.waiting import wait_until

HOLD = """
import socket, sys
held = [socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(60)]
for connection in held:
    connection.connect(sys.argv[1])
print("held", flush=True)
sys.stdin.read()
"""
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


def pids(command: str) -> list[int]:
    """Return the living processes whose command line contains `command`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
                if command in line and (entry / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX":
                    found.append(int(entry.name))
    return found


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


def parent(pid: int) -> int:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


@pytest.mark.parametrize("seed", range(6))
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


def connect(site: Site) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.settimeout(20)
    connection.connect(str(site.room / "var/s.sock"))
    return connection


def said(connection: socket.socket) -> str:
    while True:
        data, _ = protocol.receive(connection)
        message = protocol.unpack(data) if data else {"error": {"message": "closed"}}
        if "progress" not in message:
            return str(message.get("error", {}).get("message", message))


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        (b"x", "not JSON"),
        (b"[" * 60000, "not JSON"),
        (b"[]", "not a JSON object"),
        (b"{" + b" " * (64 * 1024) + b"}", "longer than the limit"),
        (b"{}", "not of version 1"),
        (b'{"version": 2, "op": "ping"}', "not of version 1"),
        (b'{"version": 1, "op": "format"}', "unknown operation"),
        (b'{"version": 1, "op": ["x"]}', "unknown operation"),
        (b'{"version": 1, "op": "resolve"}', "lacks 'reference'"),
        (b'{"version": 1, "op": "resolve", "reference": "a", "mode": "steal"}', "unknown mode"),
        (b'{"version": 1, "op": "resolve", "reference": 7, "mode": "pull"}', "lacks 'reference'"),
        (b'{"version": 1, "op": "resolve", "reference": "A b", "mode": "pull"}', "white space"),
        (b'{"version": 1, "op": "rm", "target": "sha256:zz"}', "not a digest"),
        (b'{"version": 1, "op": "import", "kind": "oci-archive", "name": "x"}', "without an archive"),
        (b'{"version": 1, "op": "prune", "older_than_s": "x", "dry_run": true}', "malformed"),
        (b'{"version": 1, "op": "ping"}', "pong"),
    ],
)
def test_requests(site: Site, request_: bytes, answer: str) -> None:
    with connect(site) as connection:
        connection.send(request_)
        assert answer in said(connection)
    assert site.alive() and "Traceback" not in site.log


def test_descriptors_that_are_no_credentials(site: Site) -> None:
    request = json.dumps({"version": 1, "op": "resolve", "reference": "ubuntu", "mode": "pull"}).encode()
    reading, writing = os.pipe()
    for fds, answer in (([reading], "memory file"), ([reading] * 2, "more than one"), ([reading] * 30, "too many")):
        with connect(site) as connection:
            connection.sendmsg([request], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])
            assert answer in said(connection)
    os.close(reading)
    os.close(writing)
    wait_until(lambda: not any("pipe:" in target for target in targets(site)), what="the closing of what came")
    wrong = os.memfd_create("x")
    os.write(wrong, b'{"auths": {"evil.example": {"auth": "x"}, "docker.io": {"auth": "y"}}}')
    with connect(site) as connection:
        connection.sendmsg([request], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [wrong]))])
        assert "docker.io alone" in said(connection)


def targets(site: Site) -> list[str]:
    assert site.process is not None
    found = []
    for entry in Path(f"/proc/{site.process.pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            found.append(os.readlink(entry))
    return found


def test_clients_that_say_nothing_hold_up_nobody(site: Site, registry: Registry, image: Path) -> None:
    reference = registry.push(image, "app:1")
    silent = [connect(site) for _ in range(40)]
    assert "error" not in site.ask(ALICE, reference)
    busy = [connect(site) for _ in range(20)]
    answers = [said(connection) for connection in busy[10:]]
    assert all("busy" in answer for answer in answers)
    assert "error" not in site.ask(ALICE, reference), "another user is still served"
    assert "no request came" in said(silent[0])
    for connection in silent + busy:
        connection.close()
    wait_until(lambda: sum("socket:" in target for target in targets(site)) < 8, what="the end of the connections")


@needs_root()
def test_a_hundred_steps_of_one_user_at_once(site: Site, registry: Registry, image: Path) -> None:
    """More than the service takes from one user: who is told that it is busy asks again."""
    reference = registry.push(image, "app:1")
    held = subprocess.Popen(
        [*become(ALICE), PYTHON, "-c", HOLD, str(site.room / "var/s.sock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd="/",
    )
    assert held.stdout is not None and held.stdout.readline() == b"held\n"
    client = site.begin(ALICE, reference)
    assert "error" not in site.ask(BOB, reference), "another user is served meanwhile"
    answer = finish(client)
    assert "error" not in answer and "the image service is busy" in answer["said"]
    held.communicate()


def test_a_client_that_does_not_read(site: Site, registry: Registry, image: Path) -> None:
    reference = registry.push(image, "app:1")
    request = {"version": 1, "op": "resolve", "reference": reference, "mode": "pull"}
    deaf = [connect(site) for _ in range(5)]
    for connection in deaf:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        protocol.send(connection, request)
    assert "error" not in site.ask(BOB, reference)
    for connection in deaf:
        connection.close()
    assert "error" not in site.ask(BOB, reference) and site.alive()


def test_fuzz(site: Site) -> None:
    """Two thousand broken requests; the service lives and answers."""
    chance = random.Random(1)
    seed = b'{"version": 1, "op": "resolve", "reference": "localhost/a:1", "mode": "look", "target": "x"}'
    for _ in range(2000):
        data = bytearray(seed)
        for _ in range(chance.randint(1, 6)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        with connect(site) as connection:
            connection.send(bytes(data[: chance.randint(1, len(data))]))
            assert said(connection)
    assert site.alive() and "a fault in the service" not in site.log


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
