"""The section `[vet]` of piolet.toml."""

from __future__ import annotations

import re
from dataclasses import dataclass

from piolet.base.errors import ConfigError
from piolet.config.schema import absolute, setting

_IDS = re.compile(r"(\d{1,10})-(\d{1,10})", re.ASCII)


def ids(text: str) -> None:
    """Check that it is a range of user ids."""
    match = _IDS.fullmatch(text)
    if match is None or not int(match[1]) <= int(match[2]) < 2**32:
        raise ConfigError(f"'{text}' is no range of user ids like '1000-60000'")


@dataclass(frozen=True)
class VetConfig:
    """`[vet]`: how nodes are checked."""

    evals: tuple[str, ...] = setting(
        ["/etc/piolet/evals"], "Directories with the site's own evals, one file with one class each.", absolute
    )
    spool: str = setting(
        "/var/spool/piolet/vet", "Where pioletd keeps what a node measured at first (`baseline: site`).", absolute
    )
    users: tuple[str, ...] = setting(
        ["1000-61183", "65536-4294967293"],
        "Ids of the site's users: processes of others are never leftovers. systemd has those between for its services.",
        ids,
    )
    requirements_timeout_s: int = setting(
        120, "An eval whose requirements are not installed after so long is inconclusive.", least=1
    )
