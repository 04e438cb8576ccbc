"""A store of images on disk: names, who may use what, and writes that are whole or not there.

  sha256-HEX.sqsh     the image (0600)
  sha256-HEX.json     what it is: configuration, where it was pulled from (0600, as it may be private)
  sha256-HEX.access   who may use it, and nothing else (0644, read on the nodes)
  sha256-HEX.scan     what a scanner found in it (0600)
  refs/public, refs/UID   one file a reference, which gives its digest; what A pulled with credentials
                          is in A's folder, so B cannot even learn that it exists
  kept                whole blobs of pulls that broke off (kept.py)
  replaced            files of an older release that were converted again, for steps that still use them
  leases, tmp         see lease.py

An image is there when its access file is: it is written last and removed first. Readers take no lock.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import stat
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from piolet.base import files
from piolet.base.errors import ImageError
from piolet.images.reference import Reference, is_digest
from piolet.images.shared import FILE, FOLDER, Group
from piolet.system import idtable

Filed = tuple[int | None, str, str, str]
"""An index file: owner (None: everybody), reference, digest, path."""

_LIMIT = 8 * 1024 * 1024
_USUAL = 64 * 1024
_PUBLIC = "public"
_REPLACED = "replaced"
REPLACED_KEPT_S = 30 * 86400.0


@dataclass(frozen=True)
class Access:
    """Who may use an image: everybody if `public`, else `users`. `first` pulled it first, and may have `given_up`.

    pinned   who wants it to stay, however long nobody uses it
    """

    public: bool
    users: tuple[int, ...]
    first: int
    given_up: bool = False
    pinned: tuple[int, ...] = ()

    def allows(self, uid: int) -> bool:
        """Return whether `uid` may use the image."""
        return self.public or uid in self.users


def locate(store: str, digest: str, uid: int) -> str:
    """Return the path of the SquashFS file of `digest` if `uid` may use it; raises ImageError.

    Needs no more than search permission in the store.
    """
    keeper = Store(store)
    access = keeper.access(digest) if is_digest(digest) else None
    path = keeper.image_path(digest)
    if access is None or not os.path.isfile(path):
        raise ImageError(
            f"the image {digest[:19]} is not in the store {store}", "get it first: piolet image pull REFERENCE"
        )
    if not access.allows(uid):
        raise ImageError(
            f"user {uid} may not use the image {digest[:19]}: it was pulled with another user's credentials",
            "pull it with your own: piolet image pull REFERENCE",
        )
    return path


class Store:
    """The store below `root`. Only `prepare` and the methods that say so write."""

    def __init__(self, root: str, writer: str = "none", group: Group | None = None) -> None:
        """`writer` is this process's token in lease.py, by which what it leaves behind is known; `group` shares it."""
        self.root = root
        self.group = group
        self.changing = threading.Lock()
        """Held by who reads who may use an image and then writes it: this process has two threads that do."""
        self._writer = writer

    def prepare(self) -> None:
        """Make what is missing (writes); raises ImageError when the store is not ours, or others can write to it."""
        for name in ("", "refs", f"refs/{_PUBLIC}"):
            self._folder(os.path.join(self.root, name), 0o711)
        for name in ("leases", "tmp", "kept", _REPLACED):
            self._folder(os.path.join(self.root, name), 0o700)
        self.check(os.stat(self.root))

    def check(self, found: os.stat_result) -> None:
        """Raise ImageError when the store, of which `found` speaks, is not ours, or others can write to it."""
        if self.group is None and (found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o022):
            raise ImageError(
                f"the image store {self.root} belongs to uid {found.st_uid}, mode {stat.S_IMODE(found.st_mode):04o}",
                f"it must belong to uid {os.geteuid()}, and nobody else may write to it",
            )

    def image_path(self, digest: str) -> str:
        """Return where the image of `digest` lies, or would lie."""
        return self._path(digest, "sqsh")

    def access(self, digest: str) -> Access | None:
        """Return who may use the image; None: it is not there."""
        value = self._load(self._path(digest, "access"))
        try:
            users, pinned = (tuple(int(uid) for uid in value.get(key, ())) for key in ("users", "pinned"))
            given_up = bool(value.get("given_up", False))
            return Access(bool(value["public"]), users, int(value["first"]), given_up, pinned)
        except (KeyError, TypeError, ValueError):
            return None

    def present(self, digest: str) -> bool:
        """Return whether the whole image is there."""
        return self.access(digest) is not None and self._is_image(self.image_path(digest))

    def _is_image(self, path: str) -> bool:
        try:
            found = os.stat(path, follow_symlinks=self.group is None)
        except OSError:
            return False
        return stat.S_ISREG(found.st_mode) and (self.group is None or self.group.trusts(found.st_uid))

    def metadata(self, digest: str) -> dict[str, Any]:
        """Return what was written when the image was published; empty when it cannot be read."""
        return self._load(self._path(digest, "json"))

    def publish(self, digest: str, sqsh: str, metadata: dict[str, Any], access: Access) -> None:
        """Move the finished and synced file `sqsh` into the store (writes)."""
        os.rename(sqsh, self.image_path(digest))
        self._write(self._path(digest, "json"), metadata, 0o600)
        self.grant(digest, access)

    def outdated(self, digest: str) -> bool:
        """Return whether the file has one id, and not two as images do since decision 70: an older release wrote it.

        The file says so itself, in its table of ids; nothing else of it is read.
        """
        try:
            fd = os.open(self.image_path(digest), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return False  # it is not there, or cannot be read: its age is not what is wrong with it
        try:
            return len(idtable.read(fd).ids) == 1
        except OSError:
            return False  # nor here, and what is converted again and again helps nobody
        finally:
            os.close(fd)

    def replace(self, digest: str, sqsh: str, metadata: dict[str, Any]) -> None:
        """Put the finished and synced file `sqsh` in the place of the one that is there (writes).

        Who may use the image, and when it was last asked for, stays. Raises ImageError: it is not there any more.
        """
        with self.changing:
            if self.access(digest) is None:
                raise removed_meanwhile()
            used = self.last_used(digest)
            old = self.metadata(digest)
            # In between nobody finds the record of one file beside the other: a node compares where there is one.
            self.describe(digest, {key: value for key, value in old.items() if key not in ("sha256", "size")})
            # Steps that run may have the old file open on other machines, where NFS needs a name to find it by.
            name = os.path.basename(self.image_path(digest))
            os.link(self.image_path(digest), os.path.join(self.root, _REPLACED, f"{secrets.token_hex(8)}-{name}"))
            os.rename(sqsh, self.image_path(digest))
            sources = [*old.get("sources", []), *metadata["sources"]]
            self.describe(digest, {**metadata, "sources": list(dict.fromkeys(sources))})
            with contextlib.suppress(OSError):
                os.utime(self._path(digest, "json"), (used, used))

    def remove_replaced(self) -> None:
        """Remove the files that `replace` has kept for long enough (writes)."""
        folder = os.path.join(self.root, _REPLACED)
        for name in _names(folder):
            path = os.path.join(folder, name)
            with contextlib.suppress(OSError):
                if time.time() - os.stat(path).st_ctime > REPLACED_KEPT_S:
                    os.unlink(path)

    def grant(self, digest: str, access: Access) -> None:
        """Set who may use the image (writes)."""
        self._write(self._path(digest, "access"), {"version": 1, **asdict(access)}, 0o644)

    def describe(self, digest: str, metadata: dict[str, Any]) -> None:
        """Replace the metadata (writes)."""
        self._write(self._path(digest, "json"), metadata, 0o600)

    def touch(self, digest: str) -> None:
        """Note that the image is used (writes)."""
        with contextlib.suppress(OSError):
            os.utime(self._path(digest, "json"), follow_symlinks=False)

    def last_used(self, digest: str) -> float:
        """Return when the image was last asked for, in seconds since the epoch; 0 when that is not known."""
        try:
            return os.stat(self._path(digest, "json")).st_mtime
        except OSError:
            return 0.0

    def note_scan(self, digest: str, scan: dict[str, Any] | None) -> None:
        """Keep what a scanner found in an image (writes)."""
        if scan is not None:
            self._write(self._path(digest, "scan"), scan, 0o600)

    def scan(self, digest: str) -> dict[str, Any] | None:
        """Return what a scanner found in an image; None: it was not scanned."""
        return self._load(self._path(digest, "scan")) or None

    def remove(self, digest: str, filed: Iterable[Filed] | None = None) -> None:
        """Remove the image and every reference to it, which `filed` are if they have been read (writes)."""
        for suffix in ("access", "json", "scan", "sqsh"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path(digest, suffix))
        self.forget(digest, filed=filed)
        self._sync()

    def file_reference(self, reference: Reference, digest: str, owner: int | None) -> None:
        """Let `reference` mean `digest`, for `owner` or, if None, for everybody (writes)."""
        path = self.index_path(reference, owner)
        if owner is not None:
            self._folder(os.path.dirname(path), 0o711)
        value = {"version": 1, "reference": str(reference), "digest": digest}
        if self._load(path) != value:
            self._write(path, value, 0o600)

    def unfile(self, reference: Reference, owner: int | None) -> None:
        """Let `reference` mean nothing for `owner`, or in what is filed for everybody (writes)."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.index_path(reference, owner))

    def lookup(self, reference: Reference, uid: int) -> tuple[str, str] | None:
        """Return the digest that `reference` has for `uid` and the index file that says so, if uid may use it."""
        for owner in (uid, None):
            path = self.index_path(reference, owner)
            digest = self._load(path).get("digest")
            if isinstance(digest, str) and is_digest(digest) and self._is_image(self.image_path(digest)):
                access = self.access(digest)
                if access is not None and access.allows(uid):
                    return digest, path
        return None

    def known(self, reference: Reference, uid: int) -> dict[str, Any] | None:
        """Return the answer for `reference` if the store has it for `uid`, without asking a registry."""
        hit = self.lookup(reference, uid)
        if hit is not None:
            return self.answer(reference, *hit)
        digest = reference.digest
        access = self.access(digest) if digest is not None else None
        if digest is None or access is None or not access.allows(uid) or not self.present(digest):
            return None
        return self.answer(reference, digest, self._path(digest, "access"))

    def answer(self, reference: Reference, digest: str, index: str) -> dict[str, Any]:
        """Return the image as clients see it: reference, digest, path, watch, env, entrypoint, workdir, …"""
        self.touch(digest)
        config = self.metadata(digest).get("config", {})
        path = self.image_path(digest)
        return {"reference": str(reference), "digest": digest, "path": path, "watch": [path, index], **config}

    def index_path(self, reference: Reference, owner: int | None) -> str:
        """Return the index file of `reference` for `owner`, or for everybody."""
        name = hashlib.sha256(str(reference).encode()).hexdigest()
        return os.path.join(self.root, "refs", _PUBLIC if owner is None else str(owner), name + ".json")

    def references(self, uid: int | None = None) -> Iterator[Filed]:
        """Yield what is filed for everybody and for `uid`, or for all users."""
        folder = os.path.join(self.root, "refs")
        wanted = _names(folder) if uid is None else [_PUBLIC, str(uid)]
        for owner in wanted:
            for name in _names(os.path.join(folder, owner)):
                path = os.path.join(folder, owner, name)
                value = self._load(path)
                if isinstance(value.get("digest"), str) and isinstance(value.get("reference"), str):
                    yield None if owner == _PUBLIC else int(owner), value["reference"], value["digest"], path

    def forget(self, digest: str, owner: int | None = None, filed: Iterable[Filed] | None = None) -> None:
        """Remove the references to `digest`: all of them, or those of one owner (writes)."""
        for whose, _, _, path in list(self.references()) if filed is None else filed:
            if owner in (None, whose) and self._load(path).get("digest") == digest:  # it may mean another one by now
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)

    def digests(self) -> list[str]:
        """Return the digests of all images that are there."""
        names = (name.removesuffix(".access") for name in _names(self.root) if name.endswith(".access"))
        return [digest for digest in (name.replace("-", ":", 1) for name in names) if is_digest(digest)]

    def orphans(self) -> list[str]:
        """Return the digests of files whose publishing or removal was cut short."""
        found = {name.rpartition(".")[0] for name in _names(self.root) if name.startswith("sha256-")}
        digests = {name.replace("-", ":", 1) for name in found}
        return sorted(digest for digest in digests if is_digest(digest) and not self.present(digest))

    def _load(self, path: str) -> dict[str, Any]:
        return _load(path, self.group)

    def _path(self, digest: str, suffix: str) -> str:
        return os.path.join(self.root, f"{digest.replace(':', '-', 1)}.{suffix}")

    def _folder(self, path: str, mode: int) -> None:
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            return
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fchmod(fd, FOLDER if self.group else mode)
        finally:
            os.close(fd)

    def _write(self, path: str, value: dict[str, Any], mode: int) -> None:
        """Replace the file at `path`: written aside, synced, renamed, its directory synced."""
        aside = os.path.join(self.root, "tmp", f"{self._writer}-{secrets.token_hex(8)}")
        mode = FILE if self.group else mode
        files.write_whole(path, json.dumps(value).encode(), aside, mode=mode, exclusive=True, sync=True)
        self._sync(os.path.dirname(path))

    def _sync(self, folder: str | None = None) -> None:
        fd = os.open(folder or self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def removed_meanwhile() -> ImageError:
    """Return the error for an image that somebody removed while it was converted again."""
    return ImageError("the image was removed while it was converted again", "pull it, if you want to have it")


def whole(path: str, group: Group | None = None) -> str:
    """Return `path`, closed to others, if it is a plain file with no other name: who wrote it is not trusted.

    It is open to the `group` with which the store is shared.
    """
    wrong = ImageError("the program that converts images left something that is not a file of its own")
    try:
        fd = files.open_regular(path, os.O_RDONLY | os.O_NOFOLLOW)
    except (files.NotRegularError, IsADirectoryError):
        raise wrong from None
    try:
        found = os.fstat(fd)
        if found.st_nlink != 1 or found.st_uid != os.geteuid():
            raise wrong
        if group is not None:
            os.fchown(fd, -1, group.gid)
        os.fchmod(fd, FILE if group else 0o600)
    finally:
        os.close(fd)
    return path


def due(root: str, every_s: float = 86400.0) -> bool:
    """Return whether nobody has looked through the store for `every_s` seconds, and note that we do now (writes)."""
    path = os.path.join(root, "swept")
    with contextlib.suppress(FileNotFoundError):
        if 0 <= time.time() - os.stat(path).st_mtime < every_s:
            return False
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
    os.utime(path)
    return True


def _load(path: str, group: Group | None = None) -> dict[str, Any]:
    """Return the object in a file of the store, or nothing. Thousands are read for a listing: no buffer of Python's."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if group is not None and not group.trusts(os.fstat(fd).st_uid):
                return {}
            data = os.read(fd, _USUAL)
            if len(data) == _USUAL:
                data += os.pread(fd, _LIMIT, _USUAL)
        finally:
            os.close(fd)
        value = json.loads(data)
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _names(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []
