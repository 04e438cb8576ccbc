"""What the rules conclude of a node, as records: which rule, from which events, and what would be done.

In this half of the service nothing is done: a conclusion is words, and a re-vet a request in a list.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

from piolet.base.errors import EventError

NOTE, WEIGHT, REVET, TICKET, REBOOT, DRAIN = ACTIONS = ("note", "weight", "revet", "ticket", "reboot", "drain")
"""What would be done: write it down, schedule onto other nodes first, ask the site to vet the node again, ask people,
boot the node, take it out."""
UNFIT = (WEIGHT, TICKET, REBOOT, DRAIN)
"""Those that say or imply that the node is unfit."""
OPEN, CLOSED = STATES = ("open", "closed")

Key = tuple[str, str, int]


@dataclasses.dataclass(frozen=True)
class Conclusion:
    """A rule's word about a node: a case is opened, or closed again.

    case      16 hexadecimal digits, the same for the opening and the closing; made of what follows, not of the hour
    rule      the rule's name
    digest    of the rule as it was read: 16 hexadecimal digits
    cluster, node, subject   as in the events
    time      when the case was so, by the central service's clock: the time of the event that completed it
    state     open or closed
    action    what would be done while it is open: one of ACTIONS
    sentence  in words with counts, for people
    records   the keys (node, epoch, seq) of the events that it rests on, in order of their times
    values    the aggregates that the rule's condition saw, by name
    """

    case: str
    rule: str
    digest: str
    cluster: str
    node: str
    subject: str
    time: float
    state: str
    action: str
    sentence: str
    records: tuple[Key, ...]
    values: dict[str, int | float]


def case_of(rule: str, cluster: str, node: str, subject: str, first: Key) -> str:
    """Return the case's number: of a rule, where it holds, and the first event that it rests on."""
    text = "\0".join((rule, cluster, node, subject, *map(str, first)))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def encode(conclusion: Conclusion) -> bytes:
    """Return the conclusion as a line of JSON, ASCII, with its newline: the same bytes for the same conclusion."""
    return json.dumps(dataclasses.asdict(conclusion), separators=(",", ":"), sort_keys=True).encode("ascii") + b"\n"


def decode(line: bytes | str) -> Conclusion:
    """Return the conclusion of a line. Raises EventError where it is none."""
    try:
        said: dict[str, Any] = json.loads(line)
        said["records"] = tuple((node, epoch, seq) for node, epoch, seq in said["records"])
        conclusion = Conclusion(**said)
    except (ValueError, TypeError, KeyError):
        raise EventError("a conclusion cannot be read") from None
    if conclusion.action not in ACTIONS or conclusion.state not in STATES:
        raise EventError(f"a conclusion is {conclusion.state!r}, and its action {conclusion.action!r}"[:200])
    return conclusion
