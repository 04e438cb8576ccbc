"""A headline figure has a witness or a reason, and cannot be made without."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from piolet.score.figure import Figure, between, withheld, witnessed


def test_the_three_kinds() -> None:
    assert witnessed(0.5, "power").value == 0.5
    assert between(0.1, 0.2, "gaps").value is None and between(0.1, None, "a pipe").high is None
    assert withheld("nothing was read").is_withheld and not between(0.1, 0.1, "gaps").is_withheld
    assert witnessed(0.5, "power").as_dict() == {
        "value": 0.5,
        "low": 0.5,
        "high": 0.5,
        "witness": "power",
        "reason": "",
    }


@pytest.mark.parametrize(
    "make",
    [
        lambda: witnessed(0.5, ""),
        lambda: witnessed(0.5, " "),
        lambda: between(0.1, 0.2, ""),
        lambda: withheld(""),
        lambda: Figure(0.5, 0.5, "", ""),
        lambda: Figure(0.5, 0.5, "power", "gaps"),
        lambda: Figure(0.1, 0.5, "power", ""),
        lambda: Figure(0.5, None, "power", ""),
        lambda: witnessed(math.nan, "power"),
        lambda: between(0.2, 0.1, "gaps"),
    ],
)
def test_without_a_witness_or_a_reason_there_is_none(make: Callable[[], Figure]) -> None:
    with pytest.raises(ValueError, match=r"witness|range"):
        make()
