"""How many NVLinks a GPU has to have up: what its board has, not what its chip could have. Runs under Python 3.8.

A chip tells of links that its board does not wire (12 of 18 are used on an H100 NVL; NVML answers for the others, and
says that they are inactive), and a board may have no bridge. So the count is, in this order, the protocol's; all links
where NVML knows of an NVLink fabric; what BOARDS says of the product; that of the equal GPUs of this node.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from piolet.vet.evals._severities import sourced


@dataclass(frozen=True)
class Board:
    """What a product may have up: `counts`, of which any is right; none: every link that it tells of."""

    pattern: str
    counts: tuple[int, ...]
    source: str
    date: str

    def __post_init__(self) -> None:
        sourced(f"the board {self.pattern}", self.source, self.date)


BOARDS = (
    Board(r"H100 NVL", (0, 12), "Azure/azurehpc-health-checks issue 162: 12 of 18 by design", "2026-11-29"),
    Board(r"H100 PCIe|H800 PCIe", (0, 4, 8, 12), "NVIDIA H100 PCIe product brief: up to three bridges", "2026-11-29"),
    Board(r"A100.*PCIE?|A800.*PCIE?", (0, 4, 8, 12), "NVIDIA A100 PCIe product brief: up to three bridges; "
          "NVIDIA/NVSentinel pull request 1481: all 12 inactive without", "2026-11-29"),
    Board(r"\bA30\b|\bA40\b|RTX A\d000|RTX A5500", (0, 4),
          "NVIDIA product briefs: one bridge of four links", "2026-11-29"),
    Board(r"SXM|H100 80GB HBM3$", (), "NVIDIA HGX: the baseboard wires every link", "2026-11-29"),
)  # fmt: skip


@dataclass(frozen=True)
class Links:
    """What one GPU tells: `up` has one entry for each link that it tells of; `fabric` whether it has one."""

    index: int
    product: str
    fabric: bool
    up: tuple[bool, ...]

    @property
    def count(self) -> int:
        """How many are up."""
        return sum(self.up)


def wanted(links: Links, of_node: Sequence[Links], asked: int) -> tuple[tuple[int, ...], str]:
    """Return how many links of a GPU have to be up (any of these), and who says so; `asked`: the protocol, if not 0."""
    if asked:
        return (asked,), "the protocol says"
    everyone = (len(links.up),)
    if links.fabric:
        return everyone, "its NVLink fabric has"
    row = next((row for row in BOARDS if re.search(row.pattern, links.product, re.IGNORECASE)), None)
    equal = [other.count for other in of_node if other.product == links.product]
    if row is not None and row.counts:
        return row.counts, "its board has"
    if row is not None and (max(equal) or len(equal) > 1):
        return everyone, "its board has"
    return (max(equal),), "equal GPUs of this node have"


def problem(links: Links, of_node: Sequence[Links], asked: int) -> str:
    """Return what is wrong with the links of a GPU, or ''."""
    if not links.up:
        return f"it has no NVLink, {asked} are wanted" if asked else ""
    counts, who = wanted(links, of_node, asked)
    if links.count in counts:
        return ""
    need = min((count for count in counts if count > links.count), default=max(counts))
    if links.count > need:
        return ""
    down = ", ".join(str(number) for number, up in enumerate(links.up) if not up)
    return f"{links.count} NVLinks are active, {who} {need}; not active: {down}"
