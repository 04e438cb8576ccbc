"""Accounts by name or number."""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Sequence

from piolet.base.errors import ConfigError


def uid_of(name: str, setting: str) -> int:
    """Return the number of an account that a setting names, or whose number it is. Raises ConfigError."""
    if name.isascii() and name.isdecimal():
        return int(name)
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        raise ConfigError(
            f"{setting}: there is no account {name} here",
            f"make it, of the same number on all machines of the cluster: useradd --system --no-create-home {name}",
        ) from None


def own_name() -> str:
    """Return the name of the account of this process, or its number where it has none here."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def is_staff(uid: int | None, staff: Sequence[str]) -> bool:
    """Return whether a uid is of the accounts and groups (with a @ before them) in `staff`."""
    if uid is None:
        return False
    try:
        account = pwd.getpwuid(uid)
    except KeyError:
        return False
    for name in staff:
        if name == account.pw_name:
            return True
        if name.startswith("@"):
            try:
                group = grp.getgrnam(name[1:])
            except KeyError:
                continue
            if group.gr_gid == account.pw_gid or account.pw_name in group.gr_mem:
                return True
    return False
