"""The section `[events]` of piolet.toml."""

from __future__ import annotations

from dataclasses import dataclass

from piolet.config.schema import absolute, not_empty, setting, socket_path


@dataclass(frozen=True)
class EventsConfig:
    """`[events]`: what happens on a node, kept on its disk for a central service."""

    cluster: str = setting("cluster", "Slurm's ClusterName, as records name it.", not_empty)
    spool: str = setting("/var/spool/piolet/events", "Where pioletd keeps the node's records.", absolute)
    socket: str = setting(
        "/run/piolet/events.sock", "Where the plugin piolet_outcomes in slurmstepd says how tasks ended.", socket_path
    )
    hardware: bool = setting(True, "Watch the kernel's log, network ports and memory for faults.")
    heartbeat_s: int = setting(60, "So often a node says that it is well.", least=5)
    node_mib: int = setting(16, "The node's own records on its disk.", least=1)
    user_mib: int = setting(4, "Each user's records on a node's disk.", least=1)
    total_mib: int = setting(64, "All records on a node's disk.", least=4)
