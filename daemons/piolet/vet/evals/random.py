"""Fails by chance: to try out what a vetting does with a bad node. vetnode has it too."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from piolet.api import Context, Eval, Verdict, at_most, parameter


@dataclass(frozen=True)
class Random(Eval):
    """Throws a die."""

    name = "random"
    text = "fails by chance, to try vetting out"
    how = "a random number"
    source = "none"

    probability: float = parameter(0.5, text="of failing", unit="0..1", least=0)

    def check(self, context: Context) -> Verdict:
        """Fail with the probability that was asked for."""
        draw = secrets.randbelow(1_000_000) / 1_000_000
        return at_most("chance", 1.0 - draw, 1.0 - self.probability, "")
