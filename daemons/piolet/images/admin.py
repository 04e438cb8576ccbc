"""What `piolet image list`, `rm`, `prune` and `pin` do to a store, and who may.

A user sees what they may use. A private image is theirs to give up, and goes when its last user has
given it up. A public one may be in anybody's queued job: a user takes back what is their own of it, and it
stays. It is removed by root or the store's own account, or when nobody has asked for it for long.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from piolet.base import texts
from piolet.base.errors import ImageError
from piolet.images.lease import Presence
from piolet.images.reference import LOCAL, is_digest, parse
from piolet.images.settings import Keep
from piolet.images.store import Access, Filed, Store

RECENT_S = 86400.0
"""What was asked for since then is not removed for want of room: a job may be about to start with it."""
_SHORTEST = 8
_LIST = "piolet image list"


def rules(uid: int) -> bool:
    """Return whether all images are `uid`'s to remove."""
    return uid in (0, os.geteuid())


def may_remove(uid: int, access: Access) -> bool:
    """Return whether an image of which `access` speaks is `uid`'s to remove, if it is nobody else's."""
    return rules(uid) or (not access.public and uid in access.users)


def _without(pinned: tuple[int, ...], uid: int) -> tuple[int, ...]:
    return tuple(one for one in pinned if one != uid)


class Admin:
    """Listings and removals in one store."""

    def __init__(self, store: Store, presence: Presence) -> None:
        self._store = store
        self._presence = presence

    def entries(self, uid: int) -> list[dict[str, Any]]:
        """Return one object an image that `uid` may see: digest, references, size, used, access."""
        return self._entries(uid, self._store.references(None if rules(uid) else uid))

    def _entries(self, uid: int, filed: Iterable[Filed]) -> list[dict[str, Any]]:
        names: dict[str, set[str]] = {}
        for _, reference, digest, _ in filed:
            names.setdefault(digest, set()).add(reference)
        found = []
        for digest in self._store.digests():
            access = self._store.access(digest)
            if access is None or not (access.allows(uid) or rules(uid)):
                continue
            found.append(self._entry(uid, digest, access, sorted(names.get(digest, []))))
        return sorted(found, key=lambda entry: (entry["references"] or ["~"], entry["digest"]))

    def remove(self, uid: int, target: str) -> dict[str, Any]:
        """Remove a reference, and its image when nothing else refers to it; or an image by digest.

        Returns {removed: text}. Raises ImageError: not there for this user, or not theirs to remove.
        """
        with self._presence.at_work():
            return self._remove(uid, target)

    def _remove(self, uid: int, target: str) -> dict[str, Any]:
        if target.startswith("sha256:"):
            digest = self._by_digest(uid, target)
            return {"removed": f"{digest} {self._give_up(uid, digest, self._filed(digest))}"}
        reference = parse(target)
        hit = self._store.lookup(reference, uid)
        if hit is None:
            raise ImageError(f"there is no image {reference} in the store that is yours to see", _LIST)
        digest, path = hit
        everybodys = path == self._store.index_path(reference, None)
        if not everybodys or rules(uid):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        access = self._store.access(digest)
        filed = self._filed(digest)
        mine = [owner for owner, _, _, _ in filed if owner == uid or (owner is None and rules(uid))]
        if access is not None and access.public and not rules(uid):
            return {"removed": f"{reference} {self._take_back(uid, digest, [] if mine else filed, not everybodys)}"}
        if access is None or mine or (access.public and filed):
            return {"removed": f"{reference}; other references keep the image"}
        return {"removed": f"{reference} {self._give_up(uid, digest, filed)}"}

    def prune(self, uid: int, older_than_s: float, dry_run: bool) -> list[dict[str, Any]]:
        """Remove what nobody asked for since `older_than_s` seconds; return the entries that were, or would be.

        Of a user who is not the store's, only private images.
        """
        with self._presence.at_work():
            return self._prune(uid, older_than_s, dry_run)

    def expire(self, idle_s: float) -> list[dict[str, Any]]:
        """Remove public images that nobody asked for since `idle_s` seconds; return their entries."""
        with self._presence.at_work():
            self._store.remove_replaced()
            return self._prune(os.geteuid(), idle_s, dry_run=False, public_only=True)

    def evict(self, keep: Keep) -> list[dict[str, Any]]:
        """Remove what `keep` says, the longest unused first; return the entries. Pinned images stay."""
        with self._presence.at_work():
            gone = [] if keep.unused_s is None else self._prune(os.geteuid(), keep.unused_s, dry_run=False)
            return gone if keep.size is None else gone + self._shrink(keep.size)

    def _shrink(self, most: int) -> list[dict[str, Any]]:
        """Remove images until the store has no more than `most` bytes of them."""
        entries = self.entries(os.geteuid())
        over = sum(entry["size"] for entry in entries) - most
        gone: list[dict[str, Any]] = []
        of_image = self._by_image(self._store.references()) if over > 0 else {}
        for entry in sorted(entries, key=lambda one: -float(one["unused_s"])):
            if over <= 0 or entry["unused_s"] < RECENT_S:
                break
            # It may have been used, or pinned, since the listing began.
            access = self._store.access(entry["digest"])
            if access is None or access.pinned or self._unused_s(entry["digest"]) < RECENT_S:
                continue
            self._give_up(os.geteuid(), entry["digest"], of_image.get(entry["digest"], []))
            gone.append(entry)
            over -= entry["size"]
        return gone

    def pin(self, uid: int, target: str, wanted: bool) -> dict[str, Any]:
        """Have an image stay however long nobody uses it, or no longer; return {reference, digest}.

        Raises ImageError: not there for this user, or not theirs to pin: it costs whoever pulled it first.
        """
        chosen = self.chosen(uid, target)
        if not chosen:
            raise ImageError(f"there is no image {target} in the store that is yours to see", _LIST)
        entry = chosen[0]
        digest, shown = entry["digest"], (entry["references"] or [entry["digest"]])[0]
        with self._presence.at_work(), self._store.changing:
            access = self._store.access(digest)
            if access is None or not (rules(uid) or (access.first == uid and not access.given_up)):
                raise ImageError(
                    f"{shown} is not yours to pin: another pulled it first, and it counts against their quota",
                    "an administrator can pin it",
                )
            pinned = _without(access.pinned, uid) if not (rules(uid) and not wanted) else ()
            self._store.grant(digest, replace(access, pinned=(*pinned, uid) if wanted else pinned))
        return {"reference": shown, "digest": digest}

    def chosen(self, uid: int, target: str | None) -> list[dict[str, Any]]:
        """Return the entry of a reference or digest, or of every image that `uid` may see; raises ImageError."""
        entries = self.entries(uid)
        if target is None:
            return entries
        if target.startswith("sha256:"):
            digest = self._by_digest(uid, target)
        else:
            reference = parse(target)
            hit = self._store.lookup(reference, uid)
            named = {hit[0]} if hit is not None else set()
            if hit is None and rules(uid):  # what it means to one user alone, as far as that is one image
                named = {digest for _, name, digest, _ in self._store.references() if name == str(reference)}
            if len(named) != 1:
                what = f"{len(named)} images are" if named else "there is no image"
                raise ImageError(f"{what} {reference} in the store that is yours to see", _LIST)
            (digest,) = named
        return [entry for entry in entries if entry["digest"] == digest]

    def outdated(self, uid: int) -> list[dict[str, Any]]:
        """Return the entries of images that an older release converted and that `uid` may have converted again.

        Each has `sources` besides: the repositories that it can be had from again, as far as they are uid's to know.
        """
        found = []
        for entry in self.entries(uid):
            access = self._store.access(entry["digest"])
            if access is None or not may_remove(uid, access) or not self._store.outdated(entry["digest"]):
                continue
            names = [parse(reference).name for reference in entry["references"]]
            if rules(uid):
                names += self._store.metadata(entry["digest"]).get("sources", [])
            local = f"{LOCAL}/"
            sources = [name for name in dict.fromkeys(map(str, names)) if not name.startswith(local)]
            found.append({**entry, "sources": sources[:20]})
        return found

    def _prune(
        self, uid: int, older_than_s: float, dry_run: bool, *, public_only: bool = False
    ) -> list[dict[str, Any]]:
        gone = []
        filed = list(self._store.references())  # once for all images: there may be thousands of each
        of_image = self._by_image(filed)
        seen = filed if rules(uid) else [reference for reference in filed if reference[0] in (None, uid)]
        for entry in self._entries(uid, seen):
            access = self._store.access(entry["digest"])
            # It may have been used since the listing began.
            unused = self._unused_s(entry["digest"])
            if access is None or not may_remove(uid, access) or unused < older_than_s:
                continue
            if access.pinned or (public_only and not access.public):
                continue
            gone.append(entry)
            if not dry_run:
                self._give_up(uid, entry["digest"], of_image.get(entry["digest"], []))
        if not dry_run:
            self._presence.sweep()
        return gone

    def _by_image(self, filed: Iterable[Filed]) -> dict[str, list[Filed]]:
        of_image: dict[str, list[Filed]] = {}
        for reference in filed:
            of_image.setdefault(reference[2], []).append(reference)
        return of_image

    def _entry(self, uid: int, digest: str, access: Access, references: list[str]) -> dict[str, Any]:
        size = 0
        with contextlib.suppress(OSError):
            size = os.stat(self._store.image_path(digest)).st_size
        unused = self._unused_s(digest)
        who = "public" if access.public else texts.counted(len(access.users), "user")
        who = f"group {self._store.group.name}" if self._store.group else who
        who += ", yours" if access.first == uid and not access.given_up else ""
        who += ", pinned" if access.pinned else ""
        metadata = self._store.metadata(digest)
        entry = {"digest": digest, "references": references[:20], "size": size, "unused_s": unused, "access": who}
        return entry | {"signed": str(metadata.get("signed", "")), "scan": metadata.get("scan")}

    def _unused_s(self, digest: str) -> float:
        return max(0.0, time.time() - self._store.last_used(digest))

    def _filed(self, digest: str) -> list[Filed]:
        return [reference for reference in self._store.references() if reference[2] == digest]

    def _give_up(self, uid: int, digest: str, filed: Sequence[Filed]) -> str:
        """Take the image, to which `filed` refer, away from `uid`, from the disk if nobody else has it; say so."""
        with self._store.changing:
            access = self._store.access(digest)
            if access is None or rules(uid) or not (access.public or set(access.users) - {uid}):
                self._store.remove(digest, filed)
                return "and its image"
            if not access.public:
                others = tuple(user for user in access.users if user != uid)
                self._store.forget(digest, uid, filed)
                # It counts against somebody who uses it.
                first = others[0] if access.first == uid else access.first
                self._store.grant(digest, Access(False, others, first, pinned=_without(access.pinned, uid)))
                return "from your images; other users keep it"
        return self._take_back(uid, digest, filed, had_name=False)

    def _take_back(self, uid: int, digest: str, filed: Sequence[Filed], had_name: bool) -> str:
        """Take away what is the user's own of a public image: their names for it among `filed`, and its cost to them.

        Raises ImageError when nothing is.
        """
        names = [reference for reference in filed if reference[0] == uid]
        with self._store.changing:
            access = self._store.access(digest)
            held = access is not None and (uid in access.users or (access.first == uid and not access.given_up))
            if not (had_name or names or held):
                raise ImageError(
                    f"{digest[:19]} is public: only root or the store's account may remove it",
                    "it goes by itself when nobody has asked for it for long",
                )
            self._store.forget(digest, uid, names)
            if access is not None and held:
                users = tuple(user for user in access.users if user != uid)
                given_up = access.given_up or access.first == uid
                self._store.grant(digest, Access(True, users, access.first, given_up, _without(access.pinned, uid)))
        return "from your images; it is public, and stays for everybody until nobody asks for it"

    def _by_digest(self, uid: int, target: str) -> str:
        prefix = target.removeprefix("sha256:")
        if not is_digest(target) and (len(prefix) < _SHORTEST or prefix.strip("0123456789abcdef")):
            raise ImageError(f"'{target}' is not a digest: sha256: and at least {_SHORTEST} of its digits")
        found = [entry["digest"] for entry in self.entries(uid) if entry["digest"].startswith(target)]
        if len(found) != 1:
            what = "no image" if not found else f"{len(found)} images"
            raise ImageError(f"there is {what} with a digest that starts with {target}", _LIST)
        return str(found[0])
