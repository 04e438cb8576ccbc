"""Accounts by name or number."""

from __future__ import annotations

import pwd

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
