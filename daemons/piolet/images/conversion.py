"""Who asks for an image, and a conversion that several of them wait for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Requester:
    """Who asks: `entry` is their credentials for the registry, if they have any.

    renews   only wants what is there of an older release converted again; who may use it stays as it is
    """

    uid: int
    entry: dict[str, str] | None = None
    renews: bool = False


@dataclass
class Conversion:
    """A conversion that runs, or stands in the line of the user who began it, and those who listen to it."""

    uid: int
    begun: bool = False
    listeners: list[Tell] = field(default_factory=list)
    task: asyncio.Task[None] | None = None

    def tell(self, text: str) -> None:
        """Tell everybody who waits for it."""
        for listener in list(self.listeners):
            listener(text)
