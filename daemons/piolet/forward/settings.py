"""The section `[forward]` of piolet.toml."""

from __future__ import annotations

from dataclasses import dataclass

from piolet.config.schema import absolute, absolute_or_empty, not_empty, setting


@dataclass(frozen=True)
class ForwardConfig:
    """`[forward]`: piolet-forward on a compute node, which takes its events to the central service."""

    account: str = setting(
        "piolet-forward", "The account that it runs as; of one number on all machines, for MUNGE.", not_empty
    )
    state: str = setting("/var/lib/piolet-forward", "Where acknowledged.json is, which pioletd reads.", absolute)
    certificate: str = setting(
        "", "File of the node's certificate, where [central] trust is certificate.", absolute_or_empty
    )
    key: str = setting("", "File of the key of that certificate.", absolute_or_empty)
    every_s: int = setting(
        5, "Seconds until records go for which nobody waits; faults and failed tasks go at once.", least=1
    )
    beats_s: int = setting(
        300,
        "Seconds until heartbeats go where nothing else happens; well below what a rule's `missing` says (30 min).",
        least=1,
    )
    frames_s: int = setting(30, "Seconds until figures of steps go, where nodes record them ([observe]).", least=1)
