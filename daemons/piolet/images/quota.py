"""What users' own images take in the site's store, and whether there may be more.

An image counts against who pulled or imported it first, as long as it is theirs. `piolet image rm` gives it back at
once; a public image stays nevertheless, and so that nobody fills the store by pulling and giving up, what somebody
holds and what they gave up may be twice the quota together. Counted from the access files, each of which is read
again only when it changes. root and the store's account have no quota, nor has a user in a store of their own.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import NamedTuple

from piolet.base import units
from piolet.base.errors import ImageError
from piolet.base.files import Stamp
from piolet.images.reference import is_digest
from piolet.images.settings import ImagesConfig
from piolet.images.store import Store

_SUFFIX = ".access"
_HINT = "piolet image list shows which are yours, and piolet image rm gives one up"


class OverQuota(ImageError):  # noqa: N818 - named for what is the case
    """The user `uid` may not have another image."""

    def __init__(self, uid: int, message: str, hint: str = _HINT) -> None:
        super().__init__(message, hint)
        self.uid = uid


@dataclass(frozen=True)
class Held:
    """How many images somebody has, and their bytes; of the public ones among them that were given up as well."""

    images: int = 0
    size: int = 0
    given_up: int = 0
    given_up_size: int = 0


class _Counted(NamedTuple):
    stamp: Stamp
    first: int
    given_up: bool
    size: int


class Quota:
    """The quota of the site's store, by `[images]`."""

    def __init__(self, config: ImagesConfig, store: Store) -> None:
        self._store = store
        self._bytes = units.bytes_of(config.quota)
        self._images = config.quota_images
        self._counted: dict[str, _Counted] = {}

    def held(self, uid: int) -> Held:
        """Return what `uid` holds."""
        self._read()
        own = [image for image in self._counted.values() if image.first == uid]
        kept = [image.size for image in own if not image.given_up]
        given_up = [image.size for image in own if image.given_up]
        return Held(len(kept), sum(kept), len(given_up), sum(given_up))

    def check(self, uid: int, what: str, more: int) -> None:
        """Raise OverQuota when `uid` may not have another image of `more` bytes."""
        if uid in (0, os.geteuid()) or not (self._bytes or self._images):
            return
        held = self.held(uid)
        if self._images and held.images >= self._images:
            raise OverQuota(
                uid,
                f"you have {held.images} images of your own in the store, and the quota is {self._images}: "
                f"there is no room for {what}",
            )
        if self._images and held.images + held.given_up >= 2 * self._images:
            raise _too_soon(uid, f"{held.given_up} images", what)
        if self._bytes and held.size + more > self._bytes:
            raise OverQuota(
                uid,
                f"your own images in the store take {units.size(held.size)} of {units.size(self._bytes)}, the quota: "
                f"there is no room for {what}, of {units.size(more)}",
            )
        if self._bytes and held.size + held.given_up_size + more > 2 * self._bytes:
            raise _too_soon(uid, units.size(held.given_up_size), what)

    def room(self, uid: int) -> int | None:
        """Return how many bytes more `uid` may have, or None: as many as there are."""
        if uid in (0, os.geteuid()) or not self._bytes:
            return None
        held = self.held(uid)
        return max(0, min(self._bytes - held.size, 2 * self._bytes - held.size - held.given_up_size))

    def _read(self) -> None:
        found: dict[str, _Counted] = {}
        with os.scandir(self._store.root) as entries:
            for entry in entries:
                digest = entry.name.removesuffix(_SUFFIX).replace("-", ":", 1)
                if not entry.name.endswith(_SUFFIX) or not is_digest(digest):
                    continue
                try:
                    stamp = Stamp.of(entry.stat())
                    known = self._counted.get(digest)
                    if known is None or known.stamp != stamp:
                        access = self._store.access(digest)
                        if access is None:
                            continue
                        size = os.stat(self._store.image_path(digest)).st_size
                        known = _Counted(stamp, access.first, access.given_up, size)
                except FileNotFoundError:
                    continue  # it was removed just now
                found[digest] = known
        self._counted = found


def _too_soon(uid: int, given_up: str, what: str) -> OverQuota:
    return OverQuota(
        uid,
        f"you pulled and gave up {given_up} that are public and still in the store: there is no room for {what}",
        "an administrator can remove them: piolet image prune; they go by themselves when nobody asks for them",
    )
