"""What one user may take from the image service: bytes, places, time, log lines, requests. And images that rot."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from piolet.base.errors import ImageError
from piolet.images import protocol
from piolet.images.squash import Squasher, squash
from piolet.images.tarstream import Member
from piolet.images.tree import Tree

from tests.images.conftest import ALICE, BOB, PYTHON, SERVICE, Site, become, environment, finish, needs_root
from tests.images.test_users import credentials
from tests.support import oci
from tests.support.registry import Registry
from tests.support.waiting import wait_until

FLOOD = """
import socket, sys, time
end = time.monotonic() + float(sys.argv[2])
count = 0
while time.monotonic() < end:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect(sys.argv[1])
        try:
            connection.send(b'{"version": 1, "op": "x\\\\npiolet-imaged: forged\\\\u001b[2J"}')
        except OSError:
            pass
    count += 1
print(count)
"""


def test_no_request_forges_a_line_of_the_log(site: Site) -> None:
    hostile = "\npiolet-imaged: uid 0 (pid 1): rm everything\x1b[2J\r"
    for request in (
        {"op": hostile},
        {"op": "resolve", "reference": hostile, "mode": "pull"},
        {"op": "resolve", "reference": "a", "mode": hostile},
        {"op": "rm", "target": hostile},
        {"op": "verify", "target": hostile},
        {"op": "import", "kind": hostile, "name": hostile},
    ):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            connection.settimeout(20)
            connection.connect(str(site.room / "var/s.sock"))
            protocol.send(connection, {"version": 1, **request})
            while protocol.receive(connection)[0]:
                pass
    assert "\\npiolet-imaged: uid 0 (pid 1): rm everything\\x1b[2J\\r" in site.log
    assert "\x1b" not in site.log and "\r" not in site.log
    assert all(line.startswith("piolet-imaged: ") for line in site.log.splitlines())
    assert not any("rm everything" in line and "\\n" not in line for line in site.log.splitlines())


@needs_root()
def test_a_client_in_a_loop_is_slowed_down_and_fills_no_log(site: Site, registry: Registry, image: Path) -> None:
    reference = registry.push(image, "app:1")
    site.ask(BOB, reference)
    lasting = 4.0
    loops = [
        subprocess.Popen(
            [*become(ALICE), PYTHON, "-c", FLOOD, str(site.room / "var/s.sock"), str(lasting)],
            env=environment(),
            stdout=subprocess.PIPE,
            cwd="/",
        )
        for _ in range(2)
    ]
    assert "error" not in site.ask(BOB, reference), "another user is served meanwhile"
    asked = sum(int(loop.communicate(timeout=60)[0]) for loop in loops)
    lines = [line for line in site.log.splitlines() if f"uid {ALICE}" in line]
    spent = lasting + 10  # and what was in line behind it
    assert asked > 500 and len(lines) <= 100 + 20 * spent, (asked, len(lines))
    # Who keeps to the rate is answered again, and what was left out is told.
    answer = site.ask(ALICE, reference)
    assert "error" not in answer, answer
    site.stop()
    assert f"lines about user {ALICE} were left out" in site.log


@needs_root()
def test_a_small_archive_of_holes_is_refused_at_once(site: Site, image: Path) -> None:
    """10 KB that say that they are 4 GiB; the limit of 512 GiB let them pass."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("hole")
        info.pax_headers = {"GNU.sparse.map": "0,0", "GNU.sparse.size": str(4 << 30), "GNU.sparse.name": "hole"}
        archive.addfile(info)
    oci.build(site.room / "i", [raw.getvalue()])
    oci.archive(site.room / "i", site.room / "a.tar")
    refused = site.piolet(ALICE, "image", "import", str(site.room / "a.tar"))
    assert "more than 1.0 GiB of unpacked content, the limit for layers of" in refused.stderr, refused.stderr
    assert "unpack_ratio" in refused.stderr and site.leftovers() == [] and site.images() == []


@needs_root()
def test_who_waits_for_another_machine_takes_no_place(site: Site, registry: Registry, image: Path) -> None:
    """Two places for conversions; two users wait for what another machine has in hand, and a third is served."""
    leases = site.store / "leases"
    other = leases / "0123456789abcdef.process"
    other.write_text(json.dumps({"where": "another machine", "pid": 1, "born": "1", "host": "far"}))
    os.chown(other, SERVICE, SERVICE)
    waiting = []
    for number, user in enumerate((ALICE, BOB)):
        oci.build(site.room / f"i{number}", [[oci.file(f"f{number}")]])
        reference = registry.push(site.room / f"i{number}", f"app{number}:1")
        lease = leases / f"{oci.digest((site.room / f'i{number}/manifest.json').read_bytes())}.lease"
        lease.write_text("0123456789abcdef")
        os.chown(lease, SERVICE, SERVICE)
        waiting.append(site.begin(user, reference))
    third = site.begin(4303, registry.push(image, "app:1"))

    def served() -> bool:
        os.utime(other)  # the other machine lives
        return third.poll() is not None

    wait_until(served, what="the third user's image")
    assert "error" not in finish(third)
    assert all(client.poll() is None for client in waiting)
    other.unlink()
    answers = [finish(client) for client in waiting]
    assert all("error" not in answer for answer in answers), answers
    assert all(any("another importer" in text for text in answer["said"]) for answer in answers)


@needs_root()
def test_a_conversion_that_takes_too_long_for_its_size(site: Site, registry: Registry, room: Path) -> None:
    """Here mksquashfs takes its time; a small archive's is short. The place is free again for the next."""
    script = site.room / "slow"
    script.write_text("#!/bin/sh\nexec sleep 1000\n")
    script.chmod(0o755)
    impatient = site.room / "impatient.py"
    impatient.write_text(
        "import sys\nfrom piolet.cli import imaged\nfrom piolet.images import limits\n"
        "limits.PATIENCE_S = 1\nlimits._CHECK_S = 0.1\nsys.exit(imaged.main(sys.argv[1:]))\n"
    )
    site.stop()
    site.settings |= {"mksquashfs": str(script), "unpack_ratio": 1, "conversion_rate": 1024}
    site.write_config()
    with (site.room / "service.log").open("ab") as log:
        site.process = subprocess.Popen(
            [*become(SERVICE), PYTHON, str(impatient), "--config", str(site.config)],
            env=environment(),
            stderr=log,
            cwd="/",
        )
    wait_until(lambda: site.log.count("listening at") > 1, what="the service's start")
    oci.build(site.room / "i", [[oci.file("a")]])
    refused = site.ask(ALICE, registry.push(site.room / "i", "app:1"))
    # The service's own patience, a second and what a GiB takes at 1024 MiB/s: that of the child has not been shortened.
    assert "was not ready after 2 s and was given up" in refused["error"], refused
    assert site.leftovers() == []


def test_mksquashfs_without_memory(room: Path) -> None:
    def little() -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (100 << 20, 100 << 20))

    tree = Tree()
    for number in range(60_000):
        tree.add(Member(b"%d" % number, "symlink", 0o777, 0, 0, b"x", 0), number)
    with pytest.raises(ImageError, match="there is not enough memory to convert the image") as refused:
        squash(tree, [], str(room / "x.sqsh"), Squasher("mksquashfs", "zstd", little, 64), lambda _: None)
    assert "memory in [images]" in (refused.value.hint or "")


def test_the_least_memory_converts_an_image(site: Site, registry: Registry) -> None:
    site.stop()
    site.settings["memory"] = 256
    site.start()
    oci.build(site.room / "i", [[oci.file(f"f{n}", os.urandom(1 << 20)) for n in range(20)]])
    assert "error" not in site.ask(ALICE, registry.push(site.room / "i", "app:1"))


def spoil(site: Site, digest: str, change: Callable[[dict[str, object]], object] | None = None) -> None:
    """Change a byte in the middle of an image's file, or its record."""
    name = digest.replace(":", "-")
    if change is None:
        with (site.store / f"{name}.sqsh").open("r+b") as file:
            file.seek(1000)
            byte = file.read(1)
            file.seek(1000)
            file.write(bytes([byte[0] ^ 1]))
        return
    path = site.store / f"{name}.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


@needs_root()
def test_verify(site: Site, registry: Registry, guarded: Registry, image: Path) -> None:
    digests = {}
    for name in ("good", "damaged", "short", "old"):
        oci.build(site.room / name, [[oci.file(name, os.urandom(3000))]])
        digests[name] = site.ask(ALICE, registry.push(site.room / name, f"{name}:1"))["digest"]
    done = site.piolet(ALICE, "image", "verify", "--all")
    assert done.returncode == 0 and done.stdout.count("good") == 5, done  # one is its name
    spoil(site, digests["damaged"])
    with (site.store / f"{digests['short'].replace(':', '-')}.sqsh").open("ab") as file:
        file.truncate(4000)
    spoil(site, digests["old"], lambda record: record.pop("sha256"))
    done = site.piolet(ALICE, "image", "verify", "--all")
    states = {line.split()[0].rpartition("/")[2]: line for line in done.stdout.splitlines()[1:] if "/" in line}
    assert states["good:1"].endswith("  good") and states["old:1"].endswith("  no record")
    assert states["damaged:1"].endswith("  damaged") and states["short:1"].endswith("  damaged")
    assert done.returncode == 1 and "2 of 4 images cannot be trusted" in done.stderr and "hint:" in done.stderr
    for target, status in ((f"{registry.address}/good:1", 0), (digests["damaged"], 1), (digests["old"][:20], 0)):
        done = site.piolet(ALICE, "image", "verify", target)
        assert done.returncode == status and len(done.stdout.splitlines()) == 2 + (target == digests["old"][:20]), done
    # Not another's image, and nothing that is not there.
    private = guarded.push(image, "secret:1", "alice")
    hidden = site.ask(ALICE, private, **credentials(site, guarded, "alice", "secret-a", ALICE))["digest"]
    for target, said in ((private, "yours to see"), (hidden, "no image with a digest"), ("sha256:zz", "not a digest")):
        assert said in site.piolet(BOB, "image", "verify", target).stderr
    assert hidden[:19] not in site.piolet(BOB, "image", "verify", "--all").stdout
    assert site.piolet(BOB, "image", "verify").returncode == 2
    # What was damaged is removed by who may, and is good again.
    assert site.piolet(0, "image", "rm", digests["damaged"]).returncode == 0
    assert "error" not in site.ask(ALICE, f"{registry.address}/damaged:1")
    assert site.piolet(ALICE, "image", "verify", digests["damaged"]).returncode == 0


@needs_root()
def test_verify_in_an_own_store(room: Path, registry: Registry, image: Path) -> None:
    site = Site(room)
    site.write_config()
    (room / "home").mkdir()
    os.chown(room / "home", ALICE, ALICE)
    own = {"EDF_IMAGESTORE": str(room / "home/images"), "HOME": str(room / "home")}
    reference = registry.push(image, "app:1")
    assert "error" not in site.ask(ALICE, reference, **own)
    assert site.piolet(ALICE, "image", "verify", reference, **own).stdout.splitlines()[1].endswith("  good")
    (path,) = (room / "home/images").glob("*.sqsh")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert site.piolet(ALICE, "image", "verify", "--all", **own).returncode == 1


@needs_root()
def test_who_verifies_is_told_and_reading_ends_with_the_client(site: Site, registry: Registry, image: Path) -> None:
    """The file is large and on disk as holes; the service does not go on reading for nobody."""
    digest = site.ask(ALICE, registry.push(image, "app:1"))["digest"]
    name = digest.replace(":", "-")
    os.truncate(site.store / f"{name}.sqsh", 1 << 40)
    spoil(site, digest, lambda record: record.update(size=1 << 40))
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.settimeout(20)
    connection.connect(str(site.room / "var/s.sock"))
    protocol.send(connection, {"version": 1, "op": "verify", "target": digest})
    told = ""
    while "reading image 1 of 1" not in told or "of 1.0 TiB" not in told:
        told = str(protocol.unpack(protocol.receive(connection)[0]))
    assert site.process is not None
    files = Path(f"/proc/{site.process.pid}/fd")

    def read() -> bool:
        return any(name in os.readlink(entry) for entry in files.iterdir())

    assert read()
    connection.close()
    began = time.monotonic()
    wait_until(lambda: not read(), what="the end of the reading")
    assert time.monotonic() - began < 30
