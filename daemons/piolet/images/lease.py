"""Who is at work in a store: a heartbeat for each process, leases on digests, and what dead ones left.

A process that is at work has one file `leases/TOKEN.process` whose time it renews; one that is idle has none, so that
services on a thousand nodes cost a shared store nothing. A lease on a digest is
a file that holds its taker's token; it is worth as much as the token's process is alive. So many
leases cost one heartbeat, and the services of several machines can share a store. Where the dead
process was on this machine, that is seen at once; otherwise when its heartbeat is too old by the
file system's own clock. A process that was only stopped, and is taken for dead, does double work but
no harm: what it publishes has the same name and the same bytes.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

from piolet.base import files
from piolet.base.errors import ImageError
from piolet.system import processes

_SUFFIX = ".process"
_LIMIT = 4096


class Presence:
    """This process in the store below `root`. Nothing is written before `start`."""

    def __init__(self, root: str, stale_s: int, *, shared: bool = False) -> None:
        """`shared`: several users write there; what only one of them can remove is left to that one."""
        self._shared = shared
        self.token = secrets.token_hex(8)
        self.beat_s = max(0.2, min(5.0, stale_s / 6))
        self._stale_s = stale_s
        self._leases = os.path.join(root, "leases")
        self._tmp = os.path.join(root, "tmp")
        self._changing = threading.Lock()
        self._work: set[object] = set()
        self._held: set[str] = set()
        self._tidy = True

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """Be seen to be at work while the block runs; whatever writes or holds a lease is in such a block."""
        key = object()
        with self._changing:
            if not self._work:
                self._tidy = False
                self._show()
            self._work.add(key)
        try:
            yield
        finally:
            with self._changing:
                self._work.discard(key)
            self.rest()

    def rest(self) -> None:
        """Take away what this process has in the store, unless it is at work.

        Call it now and then: what cannot be removed, as where the store is read-only for a moment, goes next time.
        """
        with self._changing:
            if not self._work and not self._tidy:
                with contextlib.suppress(OSError, ImageError):
                    self._clear(self.token)
                    self._tidy = True

    @property
    def busy(self) -> bool:
        """Whether a heartbeat is wanted."""
        return bool(self._work)

    def start(self) -> None:
        """Show that this process is there, and clear away what dead ones left."""
        self._show()
        self.sweep()

    def stop(self) -> None:
        """Take this process's scratch folders and its heartbeat away."""
        self._clear(self.token)

    def beat(self) -> None:
        """Renew the heartbeat; call it every `beat_s` seconds while this process is at work."""
        try:
            os.utime(self._process(self.token))
        except FileNotFoundError:
            self._show()  # another machine took us for dead, or somebody tidied up

    def scratch(self) -> str:
        """Make and return a new private folder, which belongs to this process and is swept after its death."""
        path = os.path.join(self._tmp, f"{self.token}-{secrets.token_hex(8)}")
        os.mkdir(path, 0o700)
        return path

    def take(self, name: str) -> bool:
        """Take the lease `name` if nobody alive has it; return whether it is ours now."""
        path = self._lease(name)
        ours = f"{path}.{self.token}.new"
        with open(ours, "w", encoding="ascii") as file:
            file.write(self.token)
        try:
            for _ in range(3):
                try:
                    os.link(ours, path)  # whole or not at all: nobody can see a lease without its holder
                    self._held.add(name)
                    return True
                except FileExistsError:
                    holder = self._holder(path)
                # One of our own that nobody holds could not be given back.
                if name in self._held if holder == self.token else holder is not None and self.is_alive(holder):
                    return False
                self._take_away(path, holder)
            return False
        finally:
            with contextlib.suppress(OSError):
                os.unlink(ours)

    def release(self, name: str) -> None:
        """Give the lease back, if it is still ours."""
        self._held.discard(name)
        path = self._lease(name)
        if self._holder(path) == self.token:
            with contextlib.suppress(OSError):
                os.unlink(path)

    def is_alive(self, token: str) -> bool:
        """Return whether the process with this token is at work."""
        if token == self.token:
            return True
        try:
            text = _read(self._process(token))
            age = self._now() - os.stat(self._process(token)).st_mtime
            shown = json.loads(text)
            where, pid, born = shown["where"], int(shown["pid"]), shown["born"]
        except (OSError, ValueError, KeyError, TypeError):
            return False
        if where == _where():
            return born is not None and _born(pid) == str(born)
        return age <= self._stale_s

    def sweep(self) -> None:
        """Remove heartbeats, leases and scratch folders of processes that are dead."""
        dead: set[str] = set()
        for name in _names(self._leases):
            token = name.removesuffix(_SUFFIX)
            if token != name and not self.is_alive(token):
                dead.add(token)
        for name in _names(self._tmp):
            token = name.partition("-")[0]
            if token not in dead and not os.path.exists(self._process(token)):
                dead.add(token)
        for token in dead:
            self._clear(token)

    def _clear(self, token: str) -> None:
        for name in _names(self._tmp):
            if name.startswith(token + "-") and self._may_remove(os.path.join(self._tmp, name)):
                remove_tree(os.path.join(self._tmp, name))
        for name in _names(self._leases):
            path = os.path.join(self._leases, name)
            ours = f".{token}" in name or name == f"{token}{_SUFFIX}.new"
            if ours or (name.endswith(".lease") and self._holder(path) == token):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._process(token))

    def _may_remove(self, path: str) -> bool:
        with contextlib.suppress(FileNotFoundError):
            return not self._shared or os.lstat(path).st_uid == os.geteuid()
        return False

    def _show(self) -> None:
        shown = {"where": _where(), "pid": os.getpid(), "born": _born(os.getpid()), "host": socket.gethostname()}
        path = self._process(self.token)
        files.write_whole(path, json.dumps(shown).encode(), path + ".new", mode=0o660 if self._shared else 0o600)

    def _now(self) -> float:
        """Return the time by the store's own clock, which need not be this machine's."""
        self.beat()
        return os.stat(self._process(self.token)).st_mtime

    def _take_away(self, path: str, holder: str | None) -> None:
        """Remove a dead lease, but not one that somebody else took meanwhile."""
        aside = f"{path}.{self.token}"
        try:
            os.rename(path, aside)
        except FileNotFoundError:
            return
        if self._holder(aside) != holder:
            with contextlib.suppress(FileExistsError):
                os.link(aside, path)
        os.unlink(aside)

    def _holder(self, path: str) -> str | None:
        """Return the token in a lease, or None: there is no such lease."""
        try:
            return _read(path)
        except OSError:
            return None

    def _lease(self, name: str) -> str:
        return os.path.join(self._leases, f"{name}.lease")

    def _process(self, token: str) -> str:
        return os.path.join(self._leases, token + _SUFFIX)


def remove_tree(path: str) -> None:
    """Remove a folder or file of ours; what a dying child still writes into a folder is removed as well."""
    for _ in range(5):
        try:
            os.unlink(path)
        except FileNotFoundError:
            return
        except OSError:  # a folder: which errno says so depends on the file system
            shutil.rmtree(path, ignore_errors=True)
            if not os.path.lexists(path):
                return
    raise ImageError(f"cannot remove {path}, which is left of unfinished work", "see who owns it, and remove it")


def _names(folder: str) -> Iterator[str]:
    with contextlib.suppress(FileNotFoundError):
        yield from os.listdir(folder)


def _read(path: str) -> str:
    with open(path, encoding="ascii", errors="replace") as file:
        return file.read(_LIMIT)


def _where() -> str:
    """Return what tells this machine, since its boot, and this process namespace from all others."""
    return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"


def _born(pid: int) -> str | None:
    """Return when the process began, in the kernel's clock ticks; None: there is none, or it is a zombie."""
    try:
        found = processes.stat(pid)
    except OSError:
        return None
    return None if found.state in "ZX" else str(found.started)
