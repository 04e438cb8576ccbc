"""The image service's conversations, over a pair of sockets, and what it does to a store meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
import socket
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from piolet.cli import imaged
from piolet.images import protocol, service
from piolet.images.admin import Admin
from piolet.images.conversion import Requester
from piolet.images.importer import Importer
from piolet.images.lease import Presence
from piolet.images.listening import listen
from piolet.images.reference import parse
from piolet.images.settings import ImagesConfig
from piolet.images.store import Access, Store


def digest(number: int) -> str:
    return f"sha256:{number:064x}"


def fill(store: Store, count: int, users: tuple[int, ...]) -> None:
    """Put images into the store, two references each."""
    for number in range(count):
        sqsh = Path(store.root) / "tmp/new"
        sqsh.write_bytes(b"hsqs")
        store.publish(digest(number), str(sqsh), {"config": {}}, Access(False, users, users[0]))
        for tag in ("a", "b"):
            store.file_reference(parse(f"quay.io/app{number}:{tag}"), digest(number), users[0])


@contextlib.asynccontextmanager
async def serving(importer: Importer) -> AsyncIterator[Path]:
    """Give the socket of a service that runs here."""
    path = Path(importer.store.root).parent / "s.sock"
    with listen(str(path)) as listening:
        async with importer.open():
            task = asyncio.create_task(service.Service(importer).serve(listening))
            try:
                yield path
            finally:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task


def converse(path: Path, request: dict[str, Any], heard: threading.Event | None = None) -> list[dict[str, Any]]:
    """Send a request and return all that comes back; `heard` is set by the first message."""
    messages = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(20)
        connection.connect(str(path))
        protocol.send(connection, {"version": protocol.VERSION, **request})
        while data := protocol.receive(connection)[0]:
            messages.append(protocol.unpack(data))
            if heard is not None:
                heard.set()
    return messages


def test_a_long_listing_holds_up_nobody_and_is_not_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    importer = Importer(ImagesConfig(), str(tmp_path / "store"))
    going_on, heard = threading.Event(), threading.Event()

    def entries(_admin: Admin, _uid: int) -> list[dict[str, Any]]:
        assert going_on.wait(20)
        return []

    monkeypatch.setattr(Admin, "entries", entries)
    monkeypatch.setattr(service, "_TICK_S", 0.05)

    async def main() -> None:
        async with serving(importer) as path:
            listing = asyncio.create_task(asyncio.to_thread(converse, path, {"op": "list"}, heard))
            assert await asyncio.to_thread(heard.wait, 20), "who waits is told that the service lives"
            pong = await asyncio.to_thread(converse, path, {"op": "ping"})
            assert pong == [{"result": {"pong": True}}]
            going_on.set()
            assert (await listing)[-1] == {"result": {"count": 0}}

    asyncio.run(main())


def test_a_listing_of_any_length_arrives(tmp_path: Path) -> None:
    importer = Importer(ImagesConfig(), str(tmp_path / "store"))

    async def main() -> None:
        async with serving(importer) as path:
            fill(importer.store, 12, (os.geteuid(),))
            for number in range(12 * 20):
                long = parse(f"quay.io/{'x' * 200}/y{number}:{'t' * 100}")
                importer.store.file_reference(long, digest(number % 12), os.geteuid())
            *parts, last = await asyncio.to_thread(converse, path, {"op": "list"})
            assert last == {"result": {"count": 12}}
            assert sum(len(message["part"]) for message in parts) == 12

    asyncio.run(main())


def test_a_refresh_for_everybody_is_not_hidden_by_what_the_user_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was pulled with credentials; now the registry gives something else to everybody."""
    importer = Importer(ImagesConfig(), str(tmp_path / "store"))
    importer.store.prepare()
    fill(importer.store, 2, (4301,))
    importer.store.grant(digest(1), Access(True, (4302,), 4302))
    reference, who = parse("quay.io/app0:a"), Requester(4301)

    async def look(*_: Any, **__: Any) -> dict[str, Any]:
        return {"digest": digest(1), "size": 1, "layers": 1, "config": None}

    monkeypatch.setattr(importer, "_look", look)
    known = importer.store.known(reference, who.uid)
    assert known is not None and known["digest"] == digest(0)
    asyncio.run(importer.resolve(who, str(reference), "refresh", print))
    known = importer.store.known(reference, who.uid)
    assert known is not None and known["digest"] == digest(1)


def test_an_image_that_is_published_while_a_service_starts_is_no_orphan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, importer = (Importer(ImagesConfig(), str(tmp_path / "store")) for _ in range(2))
    other.store.prepare()
    other.presence.start()
    fill(other.store, 3, (4301,))
    for number in (1, 2):
        Path(other.store.image_path(digest(number))).unlink()
    assert other.presence.take(digest(2))
    monkeypatch.setattr(Store, "orphans", lambda _: [digest(0), digest(1), digest(2)])  # 0 was one a moment ago

    async def main() -> None:
        async with importer.open():
            pass

    asyncio.run(main())
    assert other.store.digests() == [digest(0), digest(2)], "published, and in another's hands"
    assert other.store.present(digest(0)) and other.presence.take(digest(1)), "and no lease is left"


def test_what_fails_is_not_always_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    importer = Importer(ImagesConfig(), str(tmp_path / "store"))
    failures: list[OSError] = [
        OSError(errno.EAGAIN, "Try again"),
        ConnectionResetError("the client has gone"),
        OSError(errno.EROFS, "Read-only file system"),
    ]

    async def fail(*_: Any) -> dict[str, Any]:
        raise failures.pop(0)

    monkeypatch.setattr(importer, "resolve", fail)

    async def main() -> list[list[dict[str, Any]]]:
        async with serving(importer) as path:
            request = {"op": "resolve", "reference": "app", "mode": "pull"}
            return [await asyncio.to_thread(converse, path, request) for _ in range(3)]

    with caplog.at_level("INFO"):
        (refused,), gone, (read_only,) = asyncio.run(main())
    assert "no work can be started" in refused["error"]["message"] and "limit" in refused["error"]["hint"]
    assert "can mount it with rw" in read_only["error"]["hint"]
    assert gone == [] and "went away" in caplog.text


def test_a_store_on_a_read_only_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: Store) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Store, "prepare", fail)
    (tmp_path / "p.toml").write_text(f'[images]\nstore = "{tmp_path}/store"\nsocket = "{tmp_path}/s.sock"\n')
    mask = os.umask(0o077)  # as the service sets it, for good
    try:
        assert imaged.main(["--config", str(tmp_path / "p.toml")]) == 1
    finally:
        os.umask(mask)
    assert f"image store {tmp_path}/store cannot be used: Read-only file system" in caplog.text
    assert "mount it with rw; systemd's unit" in caplog.text


def test_a_store_that_becomes_read_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    """What asks the registry is not begun, and not left behind either."""
    importer = Importer(ImagesConfig(), str(tmp_path / "store"))
    importer.store.prepare()

    def fail(_: Presence) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    async def pull() -> int | None:
        try:
            await importer.resolve(Requester(4301), "quay.io/app:1", "pull", print)
        except OSError as error:
            return error.errno
        return None

    monkeypatch.setattr(Presence, "_show", fail)
    gc.collect()
    recwarn.clear()  # of what tests before this one left
    assert asyncio.run(pull()) == errno.EROFS
    gc.collect()
    assert [str(warning.message) for warning in recwarn] == []


def test_prune_reads_the_references_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Importer(ImagesConfig(), str(tmp_path / "store")).store
    store.prepare()
    fill(store, 5, (os.geteuid(), 4301))
    admin = Importer(ImagesConfig(), store.root)
    admin.presence.start()
    read: list[int | None] = []
    references = Store.references

    def counted(keeper: Store, uid: int | None = None) -> Any:
        read.append(uid)
        return references(keeper, uid)

    monkeypatch.setattr(Store, "references", counted)
    gone = Admin(admin.store, admin.presence).prune(os.geteuid(), 0, dry_run=False)
    assert len(gone) == 5 and all(len(entry["references"]) == 2 for entry in gone)
    assert read == [None]
    assert store.digests() == [] and list(references(store)) == []
