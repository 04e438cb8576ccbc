"""What an attack is: a test that raises `Broken` when a promise did not hold, and the checks that it needs removed.

`make test` runs the attacks on Piolet as it is, where each has to fail. `make test-attacks` runs the same functions on
a build from which checks were removed (weaken.py), too: there each has to succeed, which shows that it can.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

WEAKENED = (Path(sys.prefix) / "weakened").exists()
"""Whether this interpreter is that of the build with the checks removed."""


class Broken(AssertionError):  # noqa: N818 - it is no error of the test
    """An attack has succeeded: the promise that it is about was broken, and how."""


def attack(*removed: str) -> pytest.MarkDecorator:
    """Mark a test as an attack; `removed` are the entries of weakenings.py without which it has to succeed."""
    return pytest.mark.attack(*removed)


def by_kernel(why: str) -> pytest.MarkDecorator:
    """Mark a test as an attack that the kernel or Slurm alone holds off: there is no check of ours to remove."""
    return pytest.mark.attack(kernel=why)
