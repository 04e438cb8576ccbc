"""A plan from the text of a protocol."""

from __future__ import annotations

from collections.abc import Sequence

from piolet.vet import protocol, yamltext
from piolet.vet.catalogue import catalogue
from piolet.vet.runner.plan import Plan


def plan_of(text: str, search: Sequence[str] = ()) -> Plan:
    """Return what the protocol `p.yaml` becomes; classes of users are looked for in `search`. Raises VetError."""
    return protocol.build(yamltext.parse("p.yaml", text), catalogue(), search)
