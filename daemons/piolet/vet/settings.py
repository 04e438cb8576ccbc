"""The section `[vet]` of piolet.toml."""

from __future__ import annotations

from dataclasses import dataclass

from piolet.config.schema import absolute, setting


@dataclass(frozen=True)
class VetConfig:
    """`[vet]`: how nodes are checked."""

    evals: tuple[str, ...] = setting(
        ["/etc/piolet/evals"], "Directories with the site's own evals, one file with one class each.", absolute
    )
    spool: str = setting("/var/spool/piolet/vet", "Where pioletd keeps verdicts for a central service.", absolute)
    requirements_timeout_s: int = setting(
        120, "An eval whose requirements are not installed after so long is inconclusive.", least=1
    )
