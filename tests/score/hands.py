"""Time for samplers that does not pass by itself."""

from __future__ import annotations

from piolet.samples.sampler import Clock


class Hands:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 10**9

    def clock(self) -> Clock:
        """Return what the sampler takes."""
        return Clock(lambda: self.now, lambda: self.now + 10**18, lambda s: self.pass_(max(1, round(s * 1e9))))

    def pass_(self, nanoseconds: int) -> None:
        """Let time pass."""
        self.now += nanoseconds
