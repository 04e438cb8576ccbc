"""Who meets whom in which round, worked out from a seed and a number: nobody has to be told a list of pairs.

All nodes of a vetting and its coordinator compute the same, under any Python from 3.8 on. Nodes are numbers here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

_MORE = 4
TOGETHER = 64
"""So many nodes do one collective operation at most; thousands of ranks would all read one file to find each other."""


def shuffled(count: int, seed: int) -> list[int]:
    """Return the numbers below `count` in an order that the seed decides.

    By digests, since what `random` makes of a seed may differ from one Python to the next.
    """
    return sorted(range(count), key=lambda number: hashlib.sha256(b"%d:%d" % (seed, number)).digest())


def turns(count: int) -> int:
    """Return in how many rounds each of `count` nodes meets each other one: N-1, or N where one has to pause."""
    return 0 if count < 2 else count - 1 + count % 2


def enough(count: int) -> int:
    """Return how many rounds tell slow nodes from good ones: ceil(log2 N) + 4, or all where those are fewer.

    A good node whose partners are slow with probability p meets mostly slow ones in r rounds with a probability of at
    most (4 p (1 - p)) ** (r / 2) (Chernoff's bound): for one slow node in a hundred and 18 rounds, which are those of
    10,000 nodes, 2e-13.
    """
    return min(turns(count), max(0, count - 1).bit_length() + _MORE)


def groups(count: int, most: int) -> list[range]:
    """Return the numbers below `count` in as few runs as have at most `most` each, all of about the same size."""
    parts = max(1, -(-count // max(1, most)))
    return [range(part * count // parts, (part + 1) * count // parts) for part in range(parts)]


def partner(place: int, turn: int, count: int) -> int | None:
    """Return the place whose node the one at `place` meets in a round; None: it pauses.

    Circle method: of an odd number m of places those meet whose sum leaves the rest `turn` when divided by m; the one
    that would meet itself meets the last place, or pauses where there is none.
    """
    circle = count - 1 + count % 2
    last = count - 1 if count % 2 == 0 else None
    if place == last:
        # The one place with 2 * place = turn: (circle + 1) / 2 is the inverse of 2.
        return turn * ((circle + 1) // 2) % circle
    other = (turn - place) % circle
    return last if other == place else other


def pairs(order: Sequence[int], turn: int) -> Iterator[tuple[int, int]]:
    """Yield the pairs of one round, each with the one who measures first; each measures about every other time."""
    count = len(order)
    for place in range(count if count > 1 else 0):
        other = partner(place, turn, count)
        if other is not None and place < other:
            yield (order[place], order[other]) if turn % 2 else (order[other], order[place])


def pair_of(order: Sequence[int], place: int, turn: int) -> tuple[int, int] | None:
    """Return the pair of one round, as `pairs` yields it, in which the node at `place` is; None: it pauses."""
    other = partner(place, turn, len(order)) if len(order) > 1 else None
    if other is None:
        return None
    first, second = min(place, other), max(place, other)
    return (order[first], order[second]) if turn % 2 else (order[second], order[first])
