"""Bring images into a store: one conversion per digest at a time, everybody else waits for it.

Registries and archives are other people's, and may be slow on purpose: what waits for them has places
apart from conversions, one user has only some of the places, and every request has a deadline.
The same code runs in the image service, for the site's store, and in a user's own process, for
EDF_IMAGESTORE. Who may use an image is decided here, and only by what the registry granted to that
very request: a manifest counts as a grant where the image was pulled from the same repository;
otherwise the requester has to be able to fetch every blob.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from dataclasses import replace
from typing import Any, TypeVar

from piolet.base.errors import ImageError
from piolet.images import admin, credentials, findings, jobs, scanning
from piolet.images.archive import KINDS
from piolet.images.conversion import Conversion, Requester, Tell
from piolet.images.failures import from_os
from piolet.images.kept import BLOBS, Kept
from piolet.images.lease import Presence, remove_tree
from piolet.images.limits import conversions_at_once, seconds, unpacked_limit
from piolet.images.quota import OverQuota, Quota
from piolet.images.reference import Reference, parse
from piolet.images.settings import ImagesConfig
from piolet.images.shared import Group
from piolet.images.slots import Slots, within
from piolet.images.store import Access, Store, removed_meanwhile, whole

_LOG = logging.getLogger("piolet-imaged")

_T = TypeVar("_T")
_LOOK_TIMEOUT_S = 60
_SLOW = "try again: the registry is slow, or many ask at once"
_IN_HAND = "waiting for another importer that has this image in hand"
_LONG = "try again; the site can raise pull_timeout_s in [images]"


class Importer:
    """The one writer of the store `root` in this process. `home` is set for a user's own, `group` for a group's."""

    def __init__(self, config: ImagesConfig, root: str, home: str | None = None, group: Group | None = None) -> None:
        self._config = config
        self._home = home
        self._group = group
        self.presence = Presence(root, config.lease_stale_s, shared=group is not None)
        self.store = Store(root, self.presence.token, group)
        self._kept = Kept(root)
        self._running: dict[tuple[str, str], Conversion] = {}
        self._looks = Slots(16, 4, "looked up")
        self._copies = Slots(8, 2, "fetched")
        self._conversions = Slots(conversions_at_once(config.memory), 1, "converted")
        self._quota = None if home else Quota(config, self.store)

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Be ready for work: the store is prepared and swept; at the end nothing of this process is in it."""
        self.store.prepare()
        with self.presence.at_work():
            self.presence.sweep()
            self._remove_orphans()
            self.store.remove_replaced()
            self._kept.sweep()
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

    def _remove_orphans(self) -> None:
        for digest in self.store.orphans():
            if self.presence.take(digest):
                try:
                    if not self.store.present(digest):  # else another machine has published it just now
                        self.store.remove(digest)
                finally:
                    self.presence.release(digest)

    async def resolve(self, who: Requester, text: str, mode: str, tell: Tell) -> dict[str, Any]:
        """Return what `Store.answer` returns for the reference `text`, and what the site thinks of the image.

        mode 'known': what the store has for the requester, or nothing; 'pull': from the store if it is
        there, else pulled; 'refresh': the registry is asked again; 'look': nothing is written, and the
        answer may be about an image that is not there; 'renew': an image of an older release is converted again.
        """
        answer = await self._resolve(who, parse(text), mode, tell)
        asked = self._config.scan_policy != "off" and not self._home and mode != "renew"
        if not asked or not answer or not self.store.present(answer["digest"]):
            return answer
        found = self.store.scan(answer["digest"])
        return answer | {"warnings": scanning.judge(self._config, answer["reference"], found)}

    async def _resolve(self, who: Requester, reference: Reference, mode: str, tell: Tell) -> dict[str, Any]:
        if mode == "renew":
            return await self._working(self._renew(replace(who, renews=True), reference, tell))
        if mode != "refresh":
            known = self.store.known(reference, who.uid)
            if known is not None or mode == "known":
                return known or {}
        if reference.is_local:
            raise ImageError(
                f"there is no image {reference} in the store", "import it: piolet image import FILE --name NAME:TAG"
            )
        return await self._working(self._pull(who, reference, mode, tell))

    async def _pull(self, who: Requester, reference: Reference, mode: str, tell: Tell) -> dict[str, Any]:
        """Resolve by asking the registry."""
        tell(f"asking {reference.registry} for {reference.repository}")
        found = await self._look(who, reference, tell, want_config=mode == "look")
        digest: str = found["digest"]
        if mode == "look":
            path = self.store.image_path(digest)
            return {"reference": str(reference), "digest": digest, "path": path, "watch": [], **found["config"]}
        owner = self._owner(who.uid if who.entry is not None or reference.is_loopback or self._home else None)
        async with self._deadline(reference):
            await self._admit(who, reference, digest, found, tell)
        self.store.file_reference(reference, digest, owner)
        if owner is None:
            self.store.unfile(reference, who.uid)  # it is looked at first, and may mean another image
        return self.store.answer(reference, digest, self.store.index_path(reference, owner))

    async def _renew(self, who: Requester, reference: Reference, tell: Tell) -> dict[str, Any]:
        digest = reference.digest
        access = None if digest is None else self.store.access(digest)
        if digest is None or access is None or not admin.may_remove(who.uid, access):
            raise ImageError(f"there is no image {reference} in the store that is yours to convert again")
        if self.store.outdated(digest):
            found = await self._look(who, reference, tell, want_config=False)
            async with self._deadline(reference):
                await self._join(digest, who, reference, found, tell)
        return {"digest": digest}

    async def bring(self, who: Requester, kind: str, fd: int, name: str, tell: Tell) -> dict[str, Any]:
        """Import the archive that is open at `fd`, private to the requester, and file it as `localhost/NAME`."""
        return await self._working(self._bring(who, kind, fd, name, tell))

    async def _bring(self, who: Requester, kind: str, fd: int, name: str, tell: Tell) -> dict[str, Any]:
        reference = parse(f"localhost/{name}")
        if reference.digest is not None:
            raise ImageError(f"'{name}' cannot name an imported image: it has a digest")
        if kind not in KINDS:
            raise ImageError(f"archives of the kind '{kind[:40]}' are unknown")
        await self._afford(who, reference, 0)
        tell(f"reading {reference}")
        async with self._deadline(reference), self._copies.place(who.uid, tell):
            with self._scratch() as scratch:
                job = self._job("copy", str(reference), scratch, None)
                room = await asyncio.to_thread(self._room, who.uid)
                job |= {"source": kind, "archive_fd": fd, "room": room}
                copied = await jobs.run(job, [fd], tell)
                digest: str = copied["digest"]
                await self._squash(reference, digest, copied, scratch, who, tell)
        owner = self._owner(who.uid)
        self.store.file_reference(reference, digest, owner)
        return self.store.answer(reference, digest, self.store.index_path(reference, owner))

    def _owner(self, uid: int | None) -> int | None:
        """Return for whom a reference is filed: a group's store has none of one user's."""
        return None if self._group else uid

    def _is_public(self, who: Requester, reference: Reference) -> bool:
        return bool(self._group) or not (who.entry is not None or self._home or reference.is_local)

    async def _look(self, who: Requester, reference: Reference, tell: Tell, *, want_config: bool) -> dict[str, Any]:
        limit = min(_LOOK_TIMEOUT_S, self._config.pull_timeout_s)
        async with within(3 * limit + 30, reference, _SLOW), self._looks.place(who.uid, tell):
            with self._scratch() as scratch, credentials.opened(reference.registry, who.entry) as auth_fd:
                job = self._job("look", str(reference), scratch, auth_fd, reference)
                job |= {"name": str(reference), "repository": reference.name, "want_config": want_config}
                return await jobs.run(job | {"timeout_s": limit}, [auth_fd], lambda _: None)

    async def _admit(
        self, who: Requester, reference: Reference, digest: str, found: dict[str, Any], tell: Tell
    ) -> None:
        """See to it that the image is there and that `who` may use it."""
        while not self.store.present(digest):
            try:
                await self._join(digest, who, reference, found, tell)
                break
            except OverQuota as error:
                if error.uid == who.uid:
                    raise  # else it is not this user's fault whose conversion was joined
        access = self.store.access(digest)
        public = self._is_public(who, reference)
        if access is None:
            raise ImageError(f"the image {reference} was removed while it was pulled", "pull it again")
        if access.public or (access.allows(who.uid) and not public):
            return
        sources = self.store.metadata(digest).get("sources", [])
        if reference.name not in sources or reference.is_loopback:
            # Anybody can run a registry that shows the manifest of somebody's private image; only one
            # that has the image can show its blobs. On loopback anybody may listen, so there a name proves nothing.
            tell(f"checking that {reference} may be used")
            async with self._copies.place(who.uid, tell):
                with self._scratch() as scratch:
                    await self._copy(who, reference, digest, found, scratch, tell)
        self._allow(digest, who.uid, public=public, source=reference.name)

    def _allow(self, digest: str, uid: int, *, public: bool, source: str) -> None:
        with self.store.changing:
            access = self.store.access(digest)
            if access is None:
                raise ImageError("the image was removed while it was imported", "import it again")
            users = tuple(sorted({*access.users, uid}))
            wanted = replace(access, public=access.public or public, users=users)
            if wanted != access:
                self.store.grant(digest, wanted)
        metadata = self.store.metadata(digest)
        sources = metadata.get("sources", [])
        if source not in sources:
            self.store.describe(digest, {**metadata, "sources": [*sources, source]})

    async def _join(self, digest: str, who: Requester, reference: Reference, found: dict[str, Any], tell: Tell) -> None:
        """Wait for the conversion of `digest`, starting it if nobody has; the last to leave ends it.

        Nobody joins what comes from another repository, nor what still stands in another user's line:
        that user could have seen to it that it goes on for ever.
        """
        key = (digest, f"{reference.name} again" if who.renews else reference.name)
        conversion = self._running.get(key)
        if conversion is None or not (conversion.begun or conversion.uid == who.uid):
            conversion = self._running[key] = Conversion(who.uid)
            work = self._working(self._convert(digest, who, reference, found, conversion))
            conversion.task = asyncio.create_task(work)
        task = conversion.task
        assert task is not None
        conversion.listeners.append(tell)
        try:
            await asyncio.shield(task)
        finally:
            conversion.listeners.remove(tell)
            if (task.done() or not conversion.listeners) and self._running.get(key) is conversion:
                del self._running[key]
            if not conversion.listeners and not task.done():
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, ImageError):
                    await task

    async def _convert(
        self, digest: str, who: Requester, reference: Reference, found: dict[str, Any], conversion: Conversion
    ) -> None:
        # Fetched once from each repository, on whatever machine; converted once.
        fetching = f"{digest}-{hashlib.sha256(reference.name.encode()).hexdigest()[:16]}"
        tell = conversion.tell
        async with (
            self._deadline(reference),
            self._copies.place(who.uid, tell),
            self._lease(fetching, tell),
        ):
            if self.store.present(digest) and not (who.renews and self.store.outdated(digest)):
                return  # another machine's service was first
            await self._afford(who, reference, found["size"])
            conversion.begun = True
            began = time.monotonic()
            with self._scratch() as scratch:
                with self._kept.resumed(scratch, who.uid, f"{digest}-{reference.name}", self._room(who.uid)):
                    copied = await self._copy(who, reference, digest, found, scratch, tell)
                await self._squash(reference, digest, copied, scratch, who, tell)
            _LOG.info("converted %s (%s) in %.1f s", reference, digest[:19], time.monotonic() - began)

    async def _copy(
        self, who: Requester, reference: Reference, digest: str, found: dict[str, Any], scratch: str, tell: Tell
    ) -> dict[str, Any]:
        with credentials.opened(reference.registry, who.entry) as auth_fd:
            job = self._job("copy", str(reference), scratch, auth_fd, reference)
            job |= {"repository": reference.name, "archive_fd": None, "digest": digest}
            return await jobs.run(job, [auth_fd], tell)

    async def _squash(
        self, reference: Reference, digest: str, copied: dict[str, Any], scratch: str, who: Requester, tell: Tell
    ) -> None:
        """Publish the image whose blobs lie in `scratch`, or allow it to `who` if it is there meanwhile."""
        while True:
            async with self._conversions.place(who.uid, tell):
                if self.presence.take(digest):
                    try:
                        return await self._squash_now(reference, digest, copied, scratch, who, tell)
                    finally:
                        self.presence.release(digest)
            tell(_IN_HAND)  # without a place: others have a use for it
            await asyncio.sleep(min(1.0, self.presence.beat_s))

    async def _squash_now(
        self, reference: Reference, digest: str, copied: dict[str, Any], scratch: str, who: Requester, tell: Tell
    ) -> None:
        public = self._is_public(who, reference)
        there = self.store.present(digest)
        if there:
            if not who.renews:
                # This user had every blob of it, so it is no secret to them.
                self._allow(digest, who.uid, public=public, source=reference.name)
            if not self.store.outdated(digest):
                return
            who = replace(who, renews=True)  # what it takes is counted already
        elif who.renews:
            raise removed_meanwhile()
        with os.scandir(os.path.join(scratch, BLOBS)) as blobs:
            packed = sum(blob.stat().st_size for blob in blobs)
        await self._afford(who, reference, packed)
        # The child ends itself sooner, when it knows what is in the image.
        most = seconds(packed + unpacked_limit(packed, self._config.unpack_ratio), self._config.conversion_rate)
        async with within(most, reference, _LONG):
            done = await jobs.run(self._job("squash", str(reference), scratch, None), [], tell)
        await self._afford(who, reference, done["size"])
        scan = None
        if self._config.scanner and not self._home:
            with self._scratch() as apart:
                job = self._job("scan", str(reference), apart, None) | {"of": scratch}
                scan = await scanning.scan(self._config, job, tell)
        if done["left_out"]:
            tell(f"{reference}: left out {done['left_out']} device nodes, FIFOs and sockets")
        metadata = {"version": 1, "digest": digest, "size": done["size"], "sha256": done["sha256"]}
        metadata |= {"config": copied["config"], "sources": [reference.name], "signed": copied["signed"]}
        metadata["scan"] = findings.brief(scan)
        sqsh = whole(os.path.join(scratch, "image.sqsh"), self._group)
        self.store.note_scan(digest, scan)
        if there:
            self.store.replace(digest, sqsh, metadata)
        else:
            self.store.publish(digest, sqsh, metadata, Access(public, (who.uid,), who.uid))

    async def _afford(self, who: Requester, reference: Reference, size: int) -> None:
        """Raise OverQuota when the requester's quota has no room for an image of `size` bytes more."""
        if self._quota is not None and not who.renews:
            await asyncio.to_thread(self._quota.check, who.uid, str(reference), size)

    def _room(self, uid: int) -> int | None:
        """Return how many bytes more the user may have, or None: as many as there are."""
        return None if self._quota is None else self._quota.room(uid)

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
            **jobs.settings_of(self._config),
        }

    @contextlib.contextmanager
    def _scratch(self) -> Iterator[str]:
        try:
            path = self.presence.scratch()
        except OSError as error:
            raise from_os(error, self.store.root) from None
        try:
            yield path
        finally:
            remove_tree(path)

    @contextlib.asynccontextmanager
    async def _lease(self, name: str, tell: Tell) -> AsyncIterator[None]:
        """Hold the lease `name`; whoever else has it is waited for."""
        while not self.presence.take(name):
            tell(_IN_HAND)
            await asyncio.sleep(min(1.0, self.presence.beat_s))
        try:
            yield
        finally:
            self.presence.release(name)

    async def _working(self, work: Coroutine[Any, Any, _T]) -> _T:
        try:
            with self.presence.at_work():
                return await work
        finally:
            work.close()  # not begun where the store cannot be written

    def _deadline(self, reference: Reference) -> contextlib.AbstractAsyncContextManager[None]:
        """Bound a whole pull or import, all its waiting included."""
        return within(self._config.pull_timeout_s, reference, _LONG)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self.presence.beat_s)
            if self.presence.busy:
                with contextlib.suppress(OSError):
                    self.presence.beat()
            self.presence.rest()
