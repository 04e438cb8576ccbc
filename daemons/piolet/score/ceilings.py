"""What of a node, and not of its GPUs, bounds a step: its network interface, and what was not told of links.

The network is the node's. Where the step has all of the node's GPUs, its busiest interface at its line rate is a
ceiling of theirs, as their own links are. Where it has some of them, the traffic may be that of another job, so it only
raises what the saturation can be at most.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from piolet.samples.dataset import Node
from piolet.score.saturation import LINKS

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Ceilings:
    """A node's.

    doubtful     links whose values were missing for another reason than that there is no such link
    nics         line rates of the network interfaces, B/s in one direction, by name
    is_shared    the node has more GPUs than the step, or nobody knows
    """

    doubtful: frozenset[str]
    nics: dict[str, float]
    is_shared: bool


def of(node: Node) -> Ceilings:
    """Return what is known of a node without its samples."""
    blanks = node.facts.quality.get("blanks", {})
    doubtful = {
        link
        for link, *names in LINKS
        for name in names
        if name in blanks and not any("not supported" in reason.lower() for reason in blanks[name])
    }
    facts = node.facts.header.get("facts", {})
    mine = sum(not device["mig"] for device in node.facts.devices)  # a part of a GPU is not all of it
    return Ceilings(
        doubtful=frozenset(doubtful),
        nics={str(name): float(rate) for name, rate in facts.get("nics", {}).items()},
        is_shared=not 0 < int(facts.get("gpus", 0)) <= mine,
    )


class Network:
    """A node's busiest network interface over time, as a share of its line rate."""

    def __init__(self, node: Node) -> None:
        parts = [(chunk["end"], chunk["span"], chunk["nic"]) for chunk in node.chunks(("nic",), host=True)]
        empty = [np.zeros(0)] * 3
        ends, spans, shares = (np.concatenate(part) for part in zip(*parts, strict=True)) if parts else empty
        order = np.argsort(ends, kind="stable")
        known = order[~np.isnan(shares[order])]
        self._ends, self._shares = ends[known], shares[known]
        self._begins = self._ends - spans[known].astype(np.float64) * 1e9

    def at(self, ends: Array, is_shared: bool) -> dict[str, Array]:
        """Return 'nic' or 'nic_others', as saturation.score takes them, for samples that end at `ends` (ns)."""
        if not len(self._ends):
            return {}
        place = np.minimum(np.searchsorted(self._ends, ends), len(self._ends) - 1)
        inside = (ends > self._begins[place]) & (ends <= self._ends[place])
        return {"nic_others" if is_shared else "nic": np.where(inside, self._shares[place], np.nan)}
