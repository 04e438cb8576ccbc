"""The section `[observe]` of piolet.toml."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from piolet.base.errors import ConfigError
from piolet.config.schema import absolute, absolute_or_empty, setting
from piolet.samples.settings import address_of


def _address_or_empty(text: str) -> None:
    if text:
        address_of(text)


def _sources(text: str) -> None:
    from piolet.observe.choosing import NAMES, unknown  # who sets nothing loads nothing

    if wrong := unknown(text):
        raise ConfigError(f"there is no source '{wrong[0]}'", f"there are: {', '.join(NAMES)}")


@dataclass(frozen=True)
class ObserveConfig:
    """`[observe]`: figures of every step, whether it asks for them or not (decision 137)."""

    steps: Literal["auto", "on", "off"] = setting(
        "auto",
        "Whether nodes record figures of every step: on, off, or auto, which is on where [central] url says where they "
        "go, and off where nobody would read them.",
    )
    interval_s: int = setting(10, "Seconds between two samples of a step.", least=1)
    partitions: str = setting(
        "",
        "Of which partitions' jobs, with commas between; -NAME: all but that one's; empty: of all. Where it is not "
        "empty each node asks slurmctld once a job.",
    )
    users: str = setting(
        "", "Of which users' jobs: names or numbers, with commas between; -NAME: all but that one's; empty: of all."
    )
    without: str = setting(
        "", "Sources that are not read, with commas between: `piolet observe sources` lists them.", _sources
    )
    journal: str = setting(
        "/var/spool/piolet/observe", "Where nodes keep what is not delivered yet, and some of what is.", absolute
    )
    user_mib: int = setting(32, "Each user's figures in a node's journal.", least=1)
    total_mib: int = setting(128, "All figures in a node's journal.", least=4)
    prometheus: str = setting(
        "",
        "Where each node serves the figures of its steps to Prometheus, for example 127.0.0.1:9418; empty: nowhere.",
        _address_or_empty,
    )
    prometheus_token: str = setting(
        "",
        "File of the token that Prometheus has to send; the account of [node] reads it. Empty: who reaches the address "
        "is answered.",
        absolute_or_empty,
    )


def is_on(steps: str, url: str) -> bool:
    """Return whether nodes record figures of every step; `url` is where the central service is, '' for nowhere."""
    return steps == "on" or (steps == "auto" and bool(url))
