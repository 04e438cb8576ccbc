"""What a process of a vet step knows of where it runs: its node, the other nodes, and its address. Python 3.8."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Mapping, Sequence

from piolet.api import Context
from piolet.base import hostlist
from piolet.base.errors import SlurmError
from piolet.vet.runner.plan import Plan

_ASKED_MAX = 3


def node_name(environ: Mapping[str, str]) -> str:
    """Return this node's name as Slurm has it."""
    return environ.get("SLURMD_NODENAME") or socket.gethostname().partition(".")[0]


def nodes(environ: Mapping[str, str]) -> list[str]:
    """Return the nodes of this step, or none: Slurm does not say."""
    try:
        return hostlist.expand(environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST") or "")
    except SlurmError:
        return []


def gpus_of(environ: Mapping[str, str]) -> tuple[str, ...] | None:
    """Return the numbers or UUIDs of the step's GPUs; None: all that can be seen.

    What the numbers count is the site's matter (gres.conf): on the host, foreground.by_file says it.
    """
    visible = environ.get("CUDA_VISIBLE_DEVICES", "")
    # Where GPUs are divided, Slurm's numbers count parts, in an order that nobody else knows.
    gpus = visible if "MIG-" in visible else environ.get("SLURM_STEP_GPUS") or visible
    return tuple(gpus.split(",")) if gpus else None


def context_of(
    plan: Plan, node: str, others: Sequence[str] = (), facts: Mapping[str, Sequence[str]] | None = None
) -> Context:
    """Return what evals may know here: the environment and the user are those of this process."""
    scratch = os.environ.get("TMPDIR", "")
    return Context(
        node=node,
        deadline=time.monotonic() + plan.budget_s,
        nodes=tuple(others) or (node,),
        uid=os.getuid(),
        gpus=gpus_of(os.environ),
        environ=dict(os.environ),
        # The login node's directory need not be here. The runner makes one of its own in it.
        scratch=scratch if os.path.isdir(scratch) else "/tmp",  # noqa: S108
        facts=dict(facts or {}),
    )


def own_address(node: str, others: Sequence[str]) -> str:
    """Return the address by which other nodes reach this one, '' where it cannot be told.

    It is the one from which this node would speak to another: its own name may stand for a loopback address in
    /etc/hosts. No packet is sent.
    """
    for other in [one for one in others if one != node][:_ASKED_MAX]:
        with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((other, 9))
            return str(probe.getsockname()[0])
    return ""
