"""What root's watcher and the server say to each other: one JSON object a message, from the watcher alone."""

from __future__ import annotations

from dataclasses import dataclass

MESSAGE_MAX = 8 * 1024
KINDS = (
    "node.heartbeat", "gpu.xid", "gpu.lost", "nvswitch.sxid", "pcie.aer", "memory.ecc", "device.error", "link.flap",
    "kernel.oom", "fs.blocked", "fs.evicted", "spool.dropped",
)  # fmt: skip
"""What it may say."""


@dataclass(frozen=True)
class Seen:
    """Something that the watcher saw: an event without what says where. `body` is a JSON object, as text.

    job, step, uid   of the process of which the kernel spoke; None and '': of none, or not known any more
    """

    kind: str
    source: str
    at: float
    severity: str = ""
    subject: str = ""
    body: str = "{}"
    job: int | None = None
    step: str = ""
    uid: int | None = None
