"""What the sampler says to root's process for scoring, over a SOCK_SEQPACKET pair."""

from __future__ import annotations

from dataclasses import dataclass

MESSAGE_MAX = 64 * 1024
HUNG_GPUS = ".hung"  # among what is kept of steps: which GPUs hung lately
HUNG = b"hung"  # instead of an order: the sampler is stuck in a driver, where not even SIGKILL may end it


@dataclass(frozen=True)
class Order:
    """A writer that is to begin: who it is, where it writes, and for which node and step.

    The reading end of the pipe with the step's samples comes with it.
    """

    uid: int
    gid: int
    groups: list[int]
    directory: str
    node: str
    step: str
