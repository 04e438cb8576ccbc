"""What the server and root's process for vetting say to each other.

Requests come from the unprivileged server over a SOCK_SEQPACKET pair: JSON, with the task's connection as descriptor.
    {"key"}       vet for the process that made the connection: who that is the kernel says, and what it wants is still
                  in the connection; the child writes its lines there, and verdicts for the spool to a second descriptor
    {"end": key}  the task is gone: end the child and all that it started
Answers: {"began"} at its start, for it may be the second; {"key", "job", "step", "found"} before the child is forked,
so that no user has had a say in it; {"key", "status"} when a child has ended, and all that it started, with a "why"
where it was never begun.
"""

from __future__ import annotations

from dataclasses import dataclass

MESSAGE_MAX = 1024
CGROUP, SLURMSTEPD, UNKNOWN = "cgroup", "slurmstepd", "unknown"
"""What says to which job and step a task belongs."""


@dataclass(frozen=True)
class Request:
    """What the server asks for: one of the two."""

    key: int | None = None
    end: int | None = None


@dataclass(frozen=True)
class Answer:
    """What the server is told: that there is a new zygote, or else one of two things of a vetting.

    found    where its task belongs, and what says so (CGROUP, SLURMSTEPD or UNKNOWN)
    status   it has ended, with this exit status
    why      root's processes could not do it, for this reason
    """

    began: bool = False
    key: int = -1
    found: str | None = None
    job: str | None = None
    step: str | None = None
    status: int | None = None
    why: str | None = None
