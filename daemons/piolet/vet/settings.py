"""`[vet]` of `piolet.toml`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class VetConfig:
    """`[vet]`: how nodes are checked."""

    evals: tuple[str, ...] = field(
        default=("/etc/piolet/evals",),
        metadata={"help": "Directories with the site's own evals, one file with one class each."},
    )
    requirements_timeout_s: int = field(
        default=120, metadata={"help": "An eval whose requirements are not installed after so long is inconclusive."}
    )


def of(settings: Any) -> VetConfig:
    """Return the section in the configuration, or the defaults."""
    found = getattr(settings, "vet", None)
    return found if isinstance(found, VetConfig) else VetConfig()
