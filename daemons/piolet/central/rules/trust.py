"""Whose doing an event is, and what a rule may conclude from it.

What users' processes say or do, one's or many's, can conclude exactly one thing: that the site should vet the node
again. Everything else needs the word of the kernel, of root or of the site. It is held here: nothing counts for a rule
unless `evidence` made it, and `evidence` makes none of a user's doing for a rule that concludes more than a re-vet.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

from piolet.central.conclusions import REVET, Key
from piolet.central.rules.components import job_of
from piolet.events.envelope import USER, Event
from piolet.events.kinds import KINDS
from piolet.vet.evals._severities import IGNORE, find

PROVOKED = {
    "kernel.oom": "any program can ask for more memory than there is",
    "fs.blocked": "any program can wait for a file system of its choice",
    "fs.evicted": "a node without memory or time is evicted, and any program can take both",
    "step.refused": "an image and its hooks are the user's",
    "vet.refused": "any program can fill a disk",
    "spool.dropped": "it is records of a user that were dropped",
}
"""Kinds that the kernel or root reports, and that a user's program can bring about at will."""


class Evidence(NamedTuple):
    """What a rule keeps of an event.

    time     by the central service's clock; of a burst that counts once its beginning
    arrived  when the central service took it
    users    whether users can bring it about
    job      as a whole: of a heterogeneous one all components are one
    group    the nodes that the same befell: of the same step, or at the same time; one set for all of them
    pair     those that it befell within the rule's `together`; likewise
    """

    time: float
    arrived: float
    key: Key
    users: bool
    uid: int | None
    job: int | None
    subject: str
    group: set[str]
    pair: set[str]


@functools.cache
def _of_a_program(xid: int) -> bool:
    return find("xid", str(xid)).severity == IGNORE


def doer(event: Event) -> str:
    """Return whose doing an event is: its source, or `user` where a user's program can bring it about."""
    if event.kind in PROVOKED:
        return USER
    body = event.body
    if event.kind == "gpu.xid" and event.source != USER:
        xid = body.get("xid")
        return event.source if type(xid) is int and 0 < xid < 1000 and not _of_a_program(xid) else USER
    if event.kind == "spool.lost" and event.uid is not None:
        return USER
    if event.kind == "slurm.node_state" and str(body.get("reason", "")).startswith("Kill task failed"):
        return USER  # slurmd drains a node whose processes do not die, and a process can see to that
    return event.source


def refusal(kind: str, action: str) -> str | None:
    """Return why a rule that concludes `action` may not look at a kind of event, as a clause; None: it may."""
    if action == REVET:
        return None
    if kind in PROVOKED:
        return PROVOKED[kind]
    if set(KINDS[kind].sources) == {USER}:
        return "it is what users' processes say or do"
    return None


NOBODY: set[str] = set()
"""The group of what is not looked at for others."""


def evidence(action: str, event: Event, key: Key, time: float, arrived: float) -> Evidence | None:
    """Return what counts for a rule that concludes `action`, of no group and no pair yet; None: it may not count.

    `key` is the event's.
    """
    users = doer(event) == USER
    if users and action != REVET:
        return None
    return Evidence(time, arrived, key, users, event.uid, job_of(event), event.subject, NOBODY, NOBODY)
