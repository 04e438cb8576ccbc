"""Bring images into a store: one conversion per digest at a time, everybody else waits for it.

The same code runs in the image service, for the site's store, and in a user's own process, for
EDF_IMAGESTORE. Who may use an image is decided here, and only by what the registry granted to that
very request: a manifest counts as a grant where the image was pulled from the same repository;
otherwise the requester has to be able to fetch every blob.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from piolet.config import ImagesConfig
from piolet.environment.images import credentials, jobs
from piolet.environment.images.lease import Presence, remove_tree
from piolet.environment.images.reference import Reference, parse
from piolet.environment.images.store import Access, Store
from piolet.errors import ImageError

_LOG = logging.getLogger("piolet-imaged")

Tell = Callable[[str], None]
_LOOK_TIMEOUT_S = 60
_CONVERSIONS = 2
_LOOKS = 16
_IMPORTS = 4


@dataclass(frozen=True)
class Requester:
    """Who asks: `entry` is their credentials for the registry, if they have any."""

    uid: int
    entry: dict[str, str] | None = None


@dataclass
class _Conversion:
    listeners: list[Tell] = field(default_factory=list)
    task: asyncio.Task[None] | None = None

    def tell(self, text: str) -> None:
        for listener in list(self.listeners):
            listener(text)


class Importer:
    """The one writer of the store `root` in this process. `home` is set for a user's own store."""

    def __init__(self, config: ImagesConfig, root: str, home: str | None = None) -> None:
        self._config = config
        self._home = home
        self.presence = Presence(root, config.lease_stale_s)
        self.store = Store(root, self.presence.token)
        self._running: dict[str, _Conversion] = {}
        self._conversions = asyncio.Semaphore(_CONVERSIONS)
        self._looks = asyncio.Semaphore(_LOOKS)
        self._imports = asyncio.Semaphore(_IMPORTS)

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Be at work: prepared, swept, with a heartbeat; all of it gone at the end."""
        self.store.prepare()
        self.presence.start()
        for digest in self.store.orphans():
            if not self.presence.is_held(digest):
                self.store.remove(digest)
        beating = asyncio.create_task(self._beat())
        try:
            yield
        finally:
            beating.cancel()
            for conversion in list(self._running.values()):
                if conversion.task is not None:
                    conversion.task.cancel()
                    with contextlib.suppress(asyncio.CancelledError, ImageError):
                        await conversion.task
            self.presence.stop()

    async def resolve(self, who: Requester, text: str, mode: str, tell: Tell) -> dict[str, Any]:
        """Return what `Store.answer` returns for the reference `text`.

        mode 'pull': from the store if it is there, else pulled; 'refresh': the registry is asked
        again; 'look': nothing is written, and the answer may be about an image that is not there.
        """
        reference = parse(text)
        if mode != "refresh":
            known = self.store.known(reference, who.uid)
            if known is not None:
                return known
        if reference.is_local:
            raise ImageError(
                f"there is no image {reference} in the store", "import it: piolet image import FILE --name NAME:TAG"
            )
        tell(f"asking {reference.registry} for {reference.repository}")
        found = await self._look(who, reference, want_config=mode == "look")
        digest: str = found["digest"]
        if mode == "look":
            path = self.store.image_path(digest)
            return {"reference": str(reference), "digest": digest, "path": path, "watch": [], **found["config"]}
        owner = who.uid if who.entry is not None or reference.is_loopback or self._home else None
        await self._admit(who, reference, digest, found, tell)
        self.store.file_reference(reference, digest, owner)
        return self.store.answer(reference, digest, self.store.index_path(reference, owner))

    async def bring(self, who: Requester, kind: str, fd: int, name: str, tell: Tell) -> dict[str, Any]:
        """Import the archive that is open at `fd`, private to the requester, and file it as `localhost/NAME`."""
        reference = parse(f"localhost/{name}")
        if reference.digest is not None:
            raise ImageError(f"'{name}' cannot name an imported image: it has a digest")
        if kind not in ("oci-archive", "docker-archive"):
            raise ImageError(f"archives of the kind '{kind[:40]}' are unknown")
        tell(f"reading {reference}")
        async with self._imports:
            with self._scratch() as scratch:
                job = self._job("copy", str(reference), scratch, None)
                job |= {"source": kind, "archive_fd": fd, "digest": None, "size": None, "layers": 0}
                copied = await jobs.run(job, [fd], self._config.pull_timeout_s, tell)
                digest: str = copied["digest"]
                async with self._lease(digest, tell), self._conversions:
                    if not self.store.present(digest):
                        await self._squash(reference, digest, copied["config"], scratch, who, tell)
        # Every blob was in the archive, so it is no secret to this user.
        self._allow(digest, who.uid, public=False, source=reference.name)
        self.store.file_reference(reference, digest, who.uid)
        return self.store.answer(reference, digest, self.store.index_path(reference, who.uid))

    async def _look(self, who: Requester, reference: Reference, *, want_config: bool) -> dict[str, Any]:
        async with self._looks:
            with self._scratch() as scratch, self._auth(reference, who) as auth_fd:
                job = self._job("look", str(reference), scratch, auth_fd, reference)
                job |= {"name": str(reference), "repository": reference.name, "want_config": want_config}
                job["timeout_s"] = limit = min(_LOOK_TIMEOUT_S, self._config.pull_timeout_s)
                return await jobs.run(job, [auth_fd], 3 * limit + 30, lambda _: None)

    async def _admit(
        self, who: Requester, reference: Reference, digest: str, found: dict[str, Any], tell: Tell
    ) -> None:
        """See to it that the image is there and that `who` may use it."""
        if not self.store.present(digest):
            await self._join(digest, who, reference, found, tell)
        access = self.store.access(digest)
        public = who.entry is None and not self._home
        if access is None:
            raise ImageError(f"the image {reference} was removed while it was pulled", "pull it again")
        if access.public or (access.allows(who.uid) and not public):
            return
        sources = self.store.metadata(digest).get("sources", [])
        if reference.name not in sources or reference.is_loopback:
            # Anybody can run a registry that shows the manifest of somebody's private image; only one
            # that has the image can show its blobs. On loopback anybody may listen, so there a name proves nothing.
            tell(f"checking that {reference} may be used")
            with self._scratch() as scratch:
                await self._copy(who, reference, digest, found, scratch, tell)
        self._allow(digest, who.uid, public=public, source=reference.name)

    def _allow(self, digest: str, uid: int, *, public: bool, source: str) -> None:
        access = self.store.access(digest)
        if access is None:
            raise ImageError("the image was removed while it was imported", "import it again")
        users = tuple(sorted({*access.users, uid}))
        wanted = Access(access.public or public, users, access.first)
        if wanted != access:
            self.store.grant(digest, wanted)
        metadata = self.store.metadata(digest)
        sources = metadata.get("sources", [])
        if source not in sources:
            self.store.describe(digest, {**metadata, "sources": [*sources, source]})

    async def _join(self, digest: str, who: Requester, reference: Reference, found: dict[str, Any], tell: Tell) -> None:
        """Wait for the conversion of `digest`, starting it if nobody has; the last to leave ends it."""
        conversion = self._running.get(digest)
        if conversion is None:
            conversion = self._running[digest] = _Conversion()
            conversion.task = asyncio.create_task(self._convert(digest, who, reference, found, conversion.tell))
        task = conversion.task
        assert task is not None
        conversion.listeners.append(tell)
        try:
            await asyncio.shield(task)
        finally:
            conversion.listeners.remove(tell)
            if (task.done() or not conversion.listeners) and self._running.get(digest) is conversion:
                del self._running[digest]
            if not conversion.listeners and not task.done():
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, ImageError):
                    await task

    async def _convert(
        self, digest: str, who: Requester, reference: Reference, found: dict[str, Any], tell: Tell
    ) -> None:
        async with self._lease(digest, tell):
            if self.store.present(digest):
                return  # another machine's service was first
            if self._conversions.locked():
                tell(f"waiting: {_CONVERSIONS} other images are being converted")
            async with self._conversions:
                began = time.monotonic()
                with self._scratch() as scratch:
                    copied = await self._copy(who, reference, digest, found, scratch, tell)
                    await self._squash(reference, digest, copied["config"], scratch, who, tell)
                _LOG.info("converted %s (%s) in %.1f s", reference, digest[:19], time.monotonic() - began)

    async def _copy(
        self, who: Requester, reference: Reference, digest: str, found: dict[str, Any], scratch: str, tell: Tell
    ) -> dict[str, Any]:
        with self._auth(reference, who) as auth_fd:
            job = self._job("copy", str(reference), scratch, auth_fd, reference)
            job |= {"source": f"docker://{reference.name}@{digest}", "archive_fd": None, "digest": digest}
            job |= {"size": found["size"], "layers": found["layers"]}
            return await jobs.run(job, [auth_fd], self._config.pull_timeout_s, tell)

    async def _squash(
        self, reference: Reference, digest: str, config: dict[str, Any], scratch: str, who: Requester, tell: Tell
    ) -> None:
        job = self._job("squash", str(reference), scratch, None)
        done = await jobs.run(job, [], self._config.pull_timeout_s, tell)
        if done["left_out"]:
            tell(f"{reference}: left out {done['left_out']} device nodes, FIFOs and sockets")
        public = who.entry is None and not self._home and not reference.is_local
        metadata = {"version": 1, "digest": digest, "size": done["size"], "config": config, "sources": [reference.name]}
        access = Access(public, (who.uid,), who.uid)
        self.store.publish(digest, os.path.join(scratch, "image.sqsh"), metadata, access)

    def _job(
        self, kind: str, what: str, scratch: str, auth_fd: int | None, reference: Reference | None = None
    ) -> dict[str, Any]:
        insecure = reference is not None and (
            reference.is_loopback or reference.registry in self._config.insecure_registries
        )
        return {
            "kind": kind,
            "what": what,
            "scratch": scratch,
            "auth_fd": auth_fd,
            "insecure": insecure,
            "home": self._home,
            "skopeo": self._config.skopeo,
            "mksquashfs": self._config.mksquashfs,
            "compression": self._config.compression,
            "timeout_s": self._config.pull_timeout_s,
        }

    @contextlib.contextmanager
    def _auth(self, reference: Reference, who: Requester) -> Iterator[int]:
        """Give an auth.json in memory; an empty one keeps skopeo from looking for this process's own."""
        data = b"{}" if who.entry is None else credentials.document(reference.registry, who.entry)
        fd = credentials.in_memory(data)
        try:
            yield fd
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def _scratch(self) -> Iterator[str]:
        try:
            path = self.presence.scratch()
        except OSError as error:
            raise ImageError(f"the image store {self.store.root} cannot be written: {error.strerror}") from None
        try:
            yield path
        finally:
            remove_tree(path)

    @contextlib.asynccontextmanager
    async def _lease(self, digest: str, tell: Tell) -> AsyncIterator[None]:
        """Hold the lease on `digest`; raises ImageError when another importer keeps it for too long."""
        clock = asyncio.get_running_loop()
        deadline = clock.time() + self._config.pull_timeout_s
        while not self.presence.take(digest):
            tell("waiting for another importer that has this image in hand")
            if clock.time() > deadline:
                raise ImageError(f"another importer has had the image {digest[:19]} in hand for too long", "try again")
            await asyncio.sleep(min(1.0, self.presence.beat_s))
        try:
            yield
        finally:
            self.presence.release(digest)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self.presence.beat_s)
            with contextlib.suppress(OSError):
                self.presence.beat()
