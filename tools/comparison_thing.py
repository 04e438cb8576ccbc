"""A row of docs/comparison.md (tools/comparison.py)."""

from __future__ import annotations

from dataclasses import dataclass

NOT_DONE = "not done"


@dataclass(frozen=True)
class Thing:
    """What somebody knows, what does the same here, the tests that hold it, and what it was not tested with."""

    name: str
    here: str
    tests: tuple[str, ...] = ()
    untested: str = ""


def row(name: str, here: str, *tests: str, untested: str = "") -> Thing:
    """Return a row; a test is FILE::NAME."""
    return Thing(name, here, tests, untested)
