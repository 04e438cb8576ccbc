"""Headline figures: what a report says first, and what a site may act on.

A figure is one of three things, and there is no fourth: a value that a second source has confirmed, which is its
witness; a range with the reason why it is no value; or nothing, with the reason. Who has neither a witness nor a
reason cannot make one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Figure:
    """One figure, in the unit of its name; made by `witnessed`, `between` or `withheld` only.

    low, high    what it can be; equal for a value, None where there is no bound
    witness      the second source that confirmed the value; '' for all that is no value
    reason       why it is no value; '' for a value

    Raises ValueError: neither a witness nor a reason, both of them, or bounds that are none.
    """

    low: float | None
    high: float | None
    witness: str
    reason: str

    def __post_init__(self) -> None:
        if bool(self.witness.strip()) == bool(self.reason.strip()):
            raise ValueError("a figure has either a witness or a reason")
        bounds = [bound for bound in (self.low, self.high) if bound is not None]
        if not all(map(math.isfinite, bounds)) or sorted(bounds) != bounds:
            raise ValueError(f"{self.low} to {self.high} is no range")
        if self.witness and (len(bounds) != 2 or self.low != self.high):
            raise ValueError("only one value can be witnessed")

    @property
    def value(self) -> float | None:
        """The value that a witness has confirmed; None: there is none."""
        return self.low if self.witness else None

    @property
    def is_withheld(self) -> bool:
        """Whether nothing is said at all."""
        return self.low is None and self.high is None

    def as_dict(self) -> dict[str, float | str | None]:
        """Return the figure as plain values for JSON."""
        return {
            "value": self.value,
            "low": self.low,
            "high": self.high,
            "witness": self.witness,
            "reason": self.reason,
        }


def restored(fields: Mapping[str, Any]) -> Figure:
    """Return the figure that `as_dict` made plain. Raises ValueError, KeyError: these are none."""
    return Figure(fields["low"], fields["high"], str(fields["witness"]), str(fields["reason"]))


def witnessed(value: float, witness: str) -> Figure:
    """Return a value that a second source has confirmed."""
    return Figure(value, value, witness, "")


def between(low: float | None, high: float | None, reason: str) -> Figure:
    """Return a range; None: there is no bound on that side."""
    return Figure(low, high, "", reason)


def withheld(reason: str) -> Figure:
    """Return nothing, and why."""
    return Figure(None, None, "", reason)
