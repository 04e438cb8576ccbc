"""The site's image store, and the cage in which images are read."""

from __future__ import annotations

import os
import pwd
import stat
from collections.abc import Iterator

from piolet.doctor.findings import BAD, NOBODY, OK, SKIPPED, WARN, Finding, Machine, look
from piolet.images.cage import probe

_SPACE_LEAST = 0.05


def store(machine: Machine) -> Iterator[Finding]:
    """Whether the image store is there, its owner's, and has room; whether this user may write is not the question."""
    if not (machine.here("piolet-imaged") or machine.here("pioletd")):
        yield Finding("store", SKIPPED, "no daemon of Piolet is installed here")
        return
    images = machine.config.images
    make = f"install -d -o {images.account} -g {images.account} -m 0711 {images.store}"
    try:
        mode, owner, flags, blocks, free = look(images.store, _seen)
    except FileNotFoundError:
        yield Finding("store", BAD, f"{images.store} is not there", make)
        return
    except TimeoutError as error:
        hint = "see whether its file system is mounted and its server answers"
        yield Finding("store", BAD, f"{images.store} gives {error.strerror}: steps with images of it fail", hint)
        return
    if not stat.S_ISDIR(mode):
        yield Finding("store", BAD, f"{images.store} is no directory", f"move it away; {make}")
    elif (wrong := _owner(owner, images.account)) is not None:
        yield Finding("store", BAD, f"{images.store} {wrong[0]}", wrong[1])
    elif not mode & stat.S_IWUSR:
        text = f"{images.store}: {images.account} cannot write there, though it is its owner"
        yield Finding("store", BAD, text, f"chmod 0711 {images.store}")
    elif mode & (stat.S_IWGRP | stat.S_IWOTH):
        yield Finding("store", BAD, f"{images.store} may be written by others", f"chmod 0711 {images.store}")
    elif not mode & stat.S_IXOTH:
        text = f"{images.store} may not be entered by users, whose srun looks at the times of files in it"
        yield Finding("store", WARN, text, f"chmod 0711 {images.store}")
    elif flags & os.ST_RDONLY and machine.here("piolet-imaged"):
        yield Finding("store", BAD, f"{images.store} is mounted read-only", "mount it with rw where images are pulled")
    elif machine.here("piolet-imaged") and blocks and free / blocks < _SPACE_LEAST:
        left = f"{free / blocks:.1%} of {images.store} are free"
        yield Finding("store", WARN, left, "piolet image prune removes what nobody uses")
    else:
        yield Finding("store", OK, images.store)


def cage(machine: Machine) -> Iterator[Finding]:
    """Which walls keep programs that read images from everything else: tried as the account that runs them."""
    if not (machine.here("piolet-imaged") or machine.here("pioletd")):
        return
    uid, account = None, f"user {os.geteuid()}"
    if os.geteuid() == 0:
        try:
            account = machine.config.images.account
            uid = pwd.getpwnam(account).pw_uid
        except KeyError:
            account, uid = "nobody", NOBODY
    standing, reasons = probe(uid or None)
    shown, why = f"images are read in {', '.join(standing)} (tried as {account}, from here)", "; ".join(reasons)
    if "namespaces" not in standing and not {"landlock", "seccomp"} <= set(standing):
        text = f"images can be neither pulled nor imported: there is no cage to read them in ({why})"
        yield Finding(
            "cage", BAD, text, "allow user namespaces (sysctl user.max_user_namespaces), or boot with Landlock"
        )
    elif reasons:
        yield Finding("cage", WARN, f"{shown}; not there: {why}", "one wall suffices; two are better")
    else:
        yield Finding("cage", OK, shown)


def _seen(store: str) -> list[int]:
    found, space = os.stat(store), os.statvfs(store)
    return [found.st_mode, found.st_uid, space.f_flag, space.f_blocks, space.f_bavail]


def _owner(owner: int, account: str) -> tuple[str, str] | None:
    """Return what is wrong with the owner and how to mend it; asked by name, as not every account can be listed."""
    try:
        uid = pwd.getpwnam(account).pw_uid
    except KeyError:
        return None  # the check of accounts says so
    if owner == uid:
        return None
    hint = f"give {account} one number on all machines; if the store is this machine's alone: chown -R {account} STORE"
    return f"belongs to user {owner}, and {account} is user {uid} here", hint
