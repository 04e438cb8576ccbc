"""The section `[hooks]` of piolet.toml."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from piolet.base.errors import ConfigError
from piolet.config.schema import absolute, setting

_OPTION = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_]+)=(.*)", re.DOTALL)
_NAME = re.compile(r"[A-Za-z0-9_-]+")


def _option(text: str) -> None:
    if not _OPTION.fullmatch(text):
        raise ConfigError(f"'{text}' is not HOOK.OPTION=VALUE")


def _name(text: str) -> None:
    if not _NAME.fullmatch(text):
        raise ConfigError(f"'{text}' is not the name of a hook")


@dataclass(frozen=True)
class HooksConfig:
    """`[hooks]`: what containers get besides what a definition names."""

    directory: str = setting(
        "/etc/piolet/hooks.d",
        "The site's own hooks: one file NAME.py each, root's and nobody else's to write.",
        absolute,
    )
    always: tuple[str, ...] = setting(
        [], 'Hooks that are on in every container, unless its definition has enabled = "false".', _name
    )
    options: tuple[str, ...] = setting(
        [], "The site's options of hooks, HOOK.OPTION=VALUE; `piolet hooks list` shows which there are.", _option
    )
    nvidia: Literal["auto", "never"] = setting(
        "auto", "Give an image that sets NVIDIA_VISIBLE_DEVICES the node's NVIDIA GPUs: 'auto', or 'never'."
    )
    cdi: tuple[str, ...] = setting(
        ["/etc/cdi", "/var/run/cdi"],
        "Directories of CDI specifications; of two with a device the later is taken.",
        absolute,
    )
    driver_root: str = setting(
        "/", "Where NVIDIA's driver is installed, for nodes without a CDI specification.", absolute
    )

    def of(self, hook: str) -> dict[str, str]:
        """Return the site's options of a hook."""
        found = [match for text in self.options if (match := _OPTION.fullmatch(text))]
        return {match[2]: match[3] for match in found if match[1] == hook}
