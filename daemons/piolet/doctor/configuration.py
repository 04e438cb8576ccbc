"""The site's piolet.toml: whether it is right, and whether users' srun can read it."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

from piolet.base.errors import ConfigError
from piolet.doctor.findings import BAD, OK, Finding, Machine
from piolet.site.config import DEFAULT_PATH, Config, load

_CHECK = "configuration"


def read(path: Path | None) -> tuple[Config, Finding | None]:
    """Return the configuration, or the defaults and what is wrong with it: the other checks go on with those."""
    try:
        return load(path), None
    except ConfigError as error:
        return Config(), Finding(_CHECK, BAD, error.message, error.hint or "mend it; piolet config check looks again")


def configuration(machine: Machine) -> Iterator[Finding]:
    """Whether it could be read here, and whether everybody can read it."""
    path = machine.config_path or DEFAULT_PATH
    if machine.config_fault is not None:
        yield machine.config_fault
    elif not path.exists():
        yield Finding(_CHECK, OK, f"there is no {path}; the defaults hold")
    elif not path.stat().st_mode & stat.S_IROTH:
        text = f"{path} may not be read by users, whose srun reads it: every step with an option of Piolet's fails"
        yield Finding(_CHECK, BAD, text, f"chmod 0644 {path}")
    else:
        yield Finding(_CHECK, OK, str(path))
