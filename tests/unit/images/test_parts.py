"""Credentials, leases, the store's files, manifests and skopeo's messages: each alone."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from piolet.base.errors import ImageError
from piolet.images import credentials, protocol, registry, store
from piolet.images import manifest as documents
from piolet.images.failures import Denied, RegistryUnreachable, from_wire, to_wire
from piolet.images.lease import Presence
from piolet.images.reference import parse
from piolet.images.slots import Slots
from piolet.images.store import Access, Store

DIGEST = "sha256:" + "ab" * 32


def word(user: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:pw".encode()).decode()}


def test_only_one_entry_is_handed_over() -> None:
    fd = credentials.in_memory(credentials.document("quay.io", word("me")))
    assert credentials.read(fd, "quay.io") == word("me")
    with pytest.raises(ImageError, match="cannot be read"):
        credentials.read(fd, "other.io")
    os.close(fd)
    for data in (b"", b"[]", b"{}", b'{"auths": 7}', b'{"auths": {"quay.io": {"auth": 7}}}', b"x" * 70_000):
        with pytest.raises(ImageError):
            credentials.check(data, "quay.io")


def presence(tmp_path: Path, stale_s: int = 3) -> Presence:
    for name in ("leases", "tmp"):
        (tmp_path / name).mkdir(exist_ok=True)
    made = Presence(str(tmp_path), stale_s)
    made.start()
    return made


def test_a_lease_is_one_process_own(tmp_path: Path) -> None:
    one, two = presence(tmp_path), presence(tmp_path)
    assert one.take("x") and not one.take("x") and not two.take("x")
    two.release("x")
    assert not two.take("x")
    one.release("x")
    assert two.take("x") and not two.take("x") and not one.take("x")
    two.stop()
    assert one.take("x")
    one.stop()
    assert list((tmp_path / "leases").iterdir()) == []


def test_who_is_idle_has_no_heartbeat(tmp_path: Path) -> None:
    """It is seen while any of its work goes on."""
    made = presence(tmp_path)
    made.stop()
    other, process = presence(tmp_path), tmp_path / f"leases/{made.token}.process"
    with made.at_work():
        with made.at_work():
            assert made.busy and made.take("x")
        assert process.exists() and not other.take("x")
        made.release("x")
    assert not process.exists() and not made.busy and other.take("x")


@pytest.mark.parametrize("busy", [True, False])
def test_what_a_read_only_store_keeps_goes_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, busy: bool) -> None:
    """A lease that could not be given back holds up nobody, and when the work is over nothing is left."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    made, other = Presence(str(tmp_path), 3), presence(tmp_path)
    with contextlib.ExitStack() as work:
        if busy:
            work.enter_context(made.at_work())
        with monkeypatch.context() as broken, made.at_work():
            made.scratch()
            assert made.take("x")
            broken.setattr(os, "unlink", refuse)
            broken.setattr(shutil, "rmtree", refuse)
            made.release("x")
        if busy:
            assert made.take("x") and not made.take("x") and not other.take("x")
    made.rest()
    other.stop()
    assert not list((tmp_path / "tmp").iterdir()) and not list((tmp_path / "leases").iterdir())


def dead(tmp_path: Path) -> str:
    """Return the token of a process that took a lease and a scratch folder and died."""
    code = (
        "import sys; from piolet.images.lease import Presence\n"
        "p = Presence(sys.argv[1], 30); p.start(); p.take('x'); p.scratch(); print(p.token)"
    )
    daemons = Path(documents.__file__).parents[2]
    made = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env={"PYTHONPATH": str(daemons)},
        capture_output=True,
        text=True,
        check=True,
    )
    return made.stdout.strip()


def test_what_a_dead_process_of_this_machine_had_is_taken_at_once(tmp_path: Path) -> None:
    one = presence(tmp_path)
    token = dead(tmp_path)
    (tmp_path / f"tmp/{token}-1").touch()  # it died while it wrote an index, which is a file and no folder
    assert (tmp_path / "leases/x.lease").read_text() == token
    assert not one.is_alive(token) and one.take("x")
    one.sweep()
    assert list((tmp_path / "tmp").iterdir()) == [] and (tmp_path / "leases/x.lease").read_text() == one.token
    assert len(list((tmp_path / "leases").iterdir())) == 2


def test_another_machines_process_lives_by_its_heartbeat(tmp_path: Path) -> None:
    one = presence(tmp_path, 5)
    far = tmp_path / "leases/feed.process"
    far.write_text(json.dumps({"where": "far", "pid": 1, "born": "7", "host": "far"}))
    (tmp_path / "leases/x.lease").write_text("feed")
    (tmp_path / "tmp/feed-1").mkdir()
    assert not one.take("x")
    one.sweep()
    assert (tmp_path / "tmp/feed-1").exists()
    then = far.stat().st_mtime - 6
    os.utime(far, (then, then))
    assert one.take("x")
    one.sweep()
    assert not (tmp_path / "tmp/feed-1").exists() and not far.exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"where": 1}', '{"where": "x", "pid": "y", "born": 1}'])
def test_heartbeats_that_cannot_be_read_are_dead(tmp_path: Path, text: str) -> None:
    one = presence(tmp_path)
    (tmp_path / "leases/feed.process").write_text(text)
    assert not one.is_alive("feed")
    one.sweep()
    assert [path.name for path in (tmp_path / "leases").iterdir()] == [f"{one.token}.process"]


def test_a_store_that_is_damaged_reads_as_empty(tmp_path: Path) -> None:
    keeper = Store(str(tmp_path / "s"))
    keeper.prepare()
    sqsh = tmp_path / "x"
    sqsh.write_bytes(b"hsqs")
    keeper.publish(DIGEST, str(sqsh), {"config": {}}, Access(True, (), 7))
    keeper.file_reference(parse("app:1"), DIGEST, None)
    assert keeper.lookup(parse("app:1"), 1) is not None and keeper.digests() == [DIGEST] and keeper.orphans() == []
    index = Path(keeper.index_path(parse("app:1"), None))
    for text in ("", "[]", '{"digest": "../../etc"}', '{"digest": 7}', "[" * 100_000):
        index.write_text(text)
        assert keeper.lookup(parse("app:1"), 1) is None
    access = tmp_path / f"s/sha256-{'ab' * 32}.access"
    for text in ("", '{"public": true}', '{"public": true, "users": 7, "first": 1}'):
        access.write_text(text)
        assert keeper.access(DIGEST) is None and keeper.orphans() == [DIGEST]
        with pytest.raises(ImageError, match="not in the store"):
            store.locate(keeper.root, DIGEST, 0)


def test_errors_travel() -> None:
    for error in (ImageError("a", "b"), RegistryUnreachable("c")):
        again = from_wire(json.loads(json.dumps(to_wire(error))))
        assert (type(again), again.message, again.hint) == (type(error), error.message, error.hint)
    assert "cannot be read" in from_wire(["x"]).message


def test_messages_have_limits() -> None:
    with pytest.raises(ImageError, match="longer than the limit"):
        protocol.pack({"x": "y" * 70_000})
    with pytest.raises(ImageError, match="longer than the limit"):
        protocol.unpack(b"x" * 70_000)


MANIFEST = {
    "schemaVersion": 2,
    "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": DIGEST, "size": 2},
    "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": DIGEST, "size": 3}],
}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schemaVersion": 1}, "schema 1"),
        ({"layers": None}, "not an image manifest"),
        ({"layers": [7]}, "an object was expected"),
        ({"layers": [{"digest": "md5:x", "size": 1}]}, "without a sha256 digest"),
        ({"layers": [{"digest": DIGEST, "size": -1}]}, "describes the blob"),
        ({"layers": [{"digest": DIGEST, "size": True}]}, "describes the blob"),
        ({"layers": [{"digest": DIGEST, "size": 1}] * 1001}, "1001 layers"),
        ({"layers": [{"digest": DIGEST, "size": 1, "mediaType": "x.tar+encrypted"}]}, "encrypted"),
        ({"manifests": []}, "where one was expected"),
    ],
)
def test_manifests_that_are_refused(change: dict[str, Any], said: str) -> None:
    assert documents.parse_manifest(json.dumps(MANIFEST).encode(), "x").size == 3
    with pytest.raises(ImageError, match=said):
        documents.parse_manifest(json.dumps({**MANIFEST, **change}).encode(), "x")


@pytest.mark.parametrize(
    ("log", "kind", "said", "hint"),
    [
        ('time="x" level=fatal msg="dial tcp: connection refused"', RegistryUnreachable, "did not answer", "network"),
        ('level=fatal msg="unauthorized: \\"x\\""', Denied, 'unauthorized: "x"', "log in"),
        ('level=fatal msg="manifest unknown"', ImageError, "manifest unknown", "spelling"),
        ('level=fatal msg="server gave HTTP response to HTTPS client"', ImageError, "HTTPS", "insecure_registries"),
        ('level=fatal msg="x509: unknown authority"', ImageError, "x509", "certs.d"),
        ('level=fatal msg="write: no space left on device"', ImageError, "no space left", "prune"),
        (
            'level=fatal msg="untarring file \\"/store/x\\": unexpected EOF"',
            ImageError,
            "untarring it: unex",
            "not all of it",
        ),
        ("", ImageError, "said nothing", None),
        ("\x1b[31m" + "x" * 5000, ImageError, "xxx", None),
    ],
)
def test_skopeos_last_words(log: str, kind: type[ImageError], said: str, hint: str | None) -> None:
    error = registry.explain(log, "app:1")
    assert type(error) is kind and said in error.message and len(error.message) < 800 and "\x1b" not in error.message
    assert (hint is None) == (error.hint is None) and (hint or "") in (error.hint or "")


def test_nobody_takes_every_place() -> None:
    async def main() -> None:
        places = Slots(3, 2, "fetched")
        told: list[str] = []
        held = [places.place(1, told.append) for _ in range(2)]
        for place in held:
            await place.__aenter__()
        third = asyncio.create_task(places.place(1, told.append).__aenter__())
        await asyncio.sleep(0)
        assert not third.done() and told == ["waiting in line: 3 images are fetched at once, 2 of one user"]
        async with asyncio.timeout(5), places.place(2, told.append):
            pass
        await held[0].__aexit__(None, None, None)
        async with asyncio.timeout(5):
            await third
        assert len(told) == 1

    asyncio.run(main())
