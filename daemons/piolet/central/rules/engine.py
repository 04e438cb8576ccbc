"""Judges events by rules as they come.

What comes out depends on the events, their order of arrival and the rules, and on nothing else: replaying the store in
its order gives the same conclusions, byte for byte.
"""

from __future__ import annotations

from piolet.central.conclusions import Conclusion
from piolet.events.envelope import Event


class Engine:
    """Takes events one by one, in the order in which the store has them."""

    def take(self, event: Event, received: float | None = None) -> list[Conclusion]:
        """Return what this event concludes, most often nothing.

        received   when the central service took it, by its clock, as the store has it; None: at the event's own time
        """
        del event, received
        return []
