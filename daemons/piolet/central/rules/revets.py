"""How many re-vets may be asked for: a node is vetted again once a day at most, and users bring about few of them.

The bounds of what users can bring about are per account and for the whole cluster, so that accounts without end ask for
no more. All times are when the central service took the records.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable

DAY = 86400.0
NODE_EVERY = DAY
PER_USER, BY_USERS, SHARE = 4, 10, 0.01
"""A day: re-vets that one account's events may take part in, and that all users' may bring about: so many, or this
share of the nodes where that is more."""
_ACCOUNTS_MAX = 10_000


class Revets:
    """The budget; `refused` counts what it did not allow."""

    def __init__(self) -> None:
        self.refused = 0
        self.nodes: dict[str, float] = {}
        self.all: deque[float] = deque()
        self.accounts: OrderedDict[int, deque[float]] = OrderedDict()

    def allow(self, node: str, brought: bool, uids: Iterable[int], nodes: int, now: float) -> bool:
        """Return whether a re-vet of a node may be asked for, and note that it is.

        brought  whether users can bring about any of what it rests on
        uids     of these users, as far as they are known
        nodes    how many there are
        """
        users = list(uids) if brought else []
        for asked in (self.all, *(self.accounts[uid] for uid in users if uid in self.accounts)):
            while asked and asked[0] <= now - DAY:
                asked.popleft()
        used = any(len(self.accounts.get(uid, ())) >= PER_USER for uid in users)
        if now - self.nodes.get(node, float("-inf")) < NODE_EVERY or (
            brought and (used or len(self.all) >= max(BY_USERS, int(SHARE * nodes)))
        ):
            self.refused += 1
            return False
        self.nodes[node] = now
        if brought:
            self.all.append(now)
        for uid in users:
            self.accounts.setdefault(uid, deque()).append(now)
            self.accounts.move_to_end(uid)
        while len(self.accounts) > _ACCOUNTS_MAX:
            self.accounts.popitem(last=False)
        return True
