"""What the vet step and its nodes agree on for meetings of several nodes: times, the table of nodes, and orders.

The coordinator's lines are

    {"piolet-vet": "table", "part": K, "of": N, "digest": D, "text": …}      who there is and where, once, in parts
    {"piolet-vet": "gone", "nodes": [NUMBER, …]}                             who is no longer there
    {"piolet-vet": "meet", "eval": NAME, "round": K, "seed": S, "turn": T}   a round of the schedule (schedule.py)
    {"piolet-vet": "meet", "eval": NAME, "round": K, "pairs": [[NUMBER, NUMBER], …]}
    {"piolet-vet": "meet", "eval": NAME, "round": K, "all": MOST}            all, in groups of at most so many
    {"piolet-vet": "stop"}

Numbers are those of the table's rows. No line grows with the number of nodes: what could is cut into several lines,
each well below records.LINE_MAX. Runs under Python 3.8.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from piolet.base.errors import VetError
from piolet.vet.runner import records, schedule

MEETING_VARIABLE = "SLURM_PIOLET_MEET"
"""What the nodes of one vetting share: a secret, a colon, and a directory that all of them see."""
_NODES_MAX = 1 << 20
_TABLE_MAX = 64 << 20
_PARTS_MAX = 1 << 14


@dataclass(frozen=True)
class Row:
    """A node of the table; `port` 0: nobody can connect to it."""

    name: str
    host: str = ""
    port: int = 0


@dataclass(frozen=True)
class Assembly:
    """What an order means for one node: who meets, by name, the first one measures; None of `peer`: it has no address.

    key   is of this meeting and of no other of its round
    """

    number: int
    members: Sequence[str]
    peer: Row | None
    key: str


def table_lines(rows: Sequence[Row]) -> Iterator[bytes]:
    """Yield the lines that tell all nodes the table."""
    plain = json.dumps([[row.name, row.host, row.port] for row in rows], separators=(",", ":")).encode("ascii")
    text = base64.b64encode(zlib.compress(plain, 9)).decode("ascii")
    size = records.LINE_MAX // 2
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    digest = hashlib.sha256(plain).hexdigest()
    for number, piece in enumerate(pieces):
        yield line("table", {"part": number, "of": len(pieces), "digest": digest, "text": piece})


def gone_lines(numbers: Sequence[int]) -> Iterator[bytes]:
    """Yield the lines that tell who is no longer there."""
    size = max(1, records.LINE_MAX // 32)
    for at in range(0, len(numbers), size):
        yield line("gone", {"nodes": numbers[at : at + size]})


def pair_lines(content: Mapping[str, Any], pairs: Sequence[tuple[int, int]]) -> Iterator[bytes]:
    """Yield the lines of one round with pairs that no seed tells."""
    size = max(1, records.LINE_MAX // 64)
    for at in range(0, len(pairs), size):
        yield line("meet", {**content, "pairs": [list(pair) for pair in pairs[at : at + size]]})


def line(kind: str, content: Mapping[str, Any]) -> bytes:
    """Return an order. Raises VetError: no node would read it, so that it must not be sent."""
    found = records.encode(kind, content)
    if len(found) > records.LINE_MAX:
        size = f"{len(found)} bytes long, more than the limit of {records.LINE_MAX}"
        raise VetError(f"the order '{kind}' of a vetting is {size}", "give the eval a shorter name")
    return found


class Orders:
    """The node's side: takes the coordinator's lines and says what this node has to do."""

    def __init__(self, node: str) -> None:
        self._node = node
        self._pieces: list[str] = []
        self._rows: Sequence[Row] | None = None
        self._own: int | None = None
        self._gone: set[int] = set()
        self._orders: dict[tuple[int, bool], tuple[Sequence[int], int]] = {}

    def take(self, kind: str, content: Mapping[str, Any], by_pairs: bool) -> Assembly | None:
        """Return the meeting of this node that a line asks for, or None.

        by_pairs   the eval needs the partner's address: who has none is not in its schedule
        Raises VetError: the line is none that this release understands.
        """
        try:
            if kind == "table":
                self._take_part(content)
            elif kind == "gone":
                self._gone.update(int(number) for number in content["nodes"])
            elif kind == "meet":
                return self._meet(content, by_pairs)
        except (KeyError, TypeError, ValueError, IndexError, zlib.error):
            raise VetError(
                f"the order '{kind}' is malformed: srun's Piolet is of another release than this node's"
            ) from None
        return None

    def _take_part(self, content: Mapping[str, Any]) -> None:
        number, count = int(content["part"]), int(content["of"])
        if number == 0:
            self._pieces = []
        if number != len(self._pieces) or count > _PARTS_MAX:
            raise ValueError("a part is missing")
        self._pieces.append(str(content["text"]))
        if len(self._pieces) < count:
            return
        packed = zlib.decompressobj()
        plain = packed.decompress(base64.b64decode("".join(self._pieces)), _TABLE_MAX)
        if hashlib.sha256(plain).hexdigest() != content["digest"]:
            raise ValueError("the table is not whole")
        rows = [Row(str(name), str(host), int(port)) for name, host, port in json.loads(plain.decode("ascii"))]
        if len(rows) > _NODES_MAX:
            raise ValueError("too many nodes")
        self._pieces = []
        self._rows = rows
        self._own = next((number for number, row in enumerate(rows) if row.name == self._node), None)

    def _meet(self, content: Mapping[str, Any], by_pairs: bool) -> Assembly | None:
        if self._rows is None:
            raise ValueError("a meeting without a table")
        number = int(content["round"])
        if self._own is None:
            return None
        if "all" in content:
            return self._together(number, int(content["all"]))
        pair = self._pair(content, by_pairs)
        if pair is None or not self._gone.isdisjoint(pair):
            return None
        first, second = (self._rows[at] for at in pair)
        return Assembly(number, (first.name, second.name), second if second.port else None, str(min(pair)))

    def _together(self, number: int, most: int) -> Assembly | None:
        """Return the meeting of this node's group."""
        if most < 2:
            raise ValueError("a group of one")
        assert self._rows is not None
        there = [at for at in range(len(self._rows)) if at not in self._gone]
        if self._own not in there:
            return None
        place = there.index(self._own)
        own = next(group for group in schedule.groups(len(there), most) if place in group)
        return Assembly(number, [self._rows[there[at]].name for at in own], None, f"all-{own.start}")

    def _pair(self, content: Mapping[str, Any], by_pairs: bool) -> tuple[int, int] | None:
        if "pairs" in content:
            told = [(int(a), int(b)) for a, b in content["pairs"]]
            return next((pair for pair in told if self._own in pair), None)
        order, place = self._order(int(content["seed"]), by_pairs)
        return schedule.pair_of(order, place, int(content["turn"])) if place >= 0 else None

    def _order(self, seed: int, by_pairs: bool) -> tuple[Sequence[int], int]:
        """Return the schedule's order and this node's place in it; -1: it has none."""
        assert self._rows is not None
        key = (seed, by_pairs)
        if key not in self._orders:
            order = scheduled(self._rows, seed, by_pairs)
            self._orders = {key: (order, order.index(self._own) if self._own in order else -1)}
        return self._orders[key]


def scheduled(rows: Sequence[Row], seed: int, by_pairs: bool) -> list[int]:
    """Return the numbers of those rows that take part, in the order of the seed; `by_pairs` as in Orders.take."""
    members = [number for number, row in enumerate(rows) if row.port or not by_pairs]
    return [members[at] for at in schedule.shuffled(len(members), seed)]
