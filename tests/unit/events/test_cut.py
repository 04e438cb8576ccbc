"""What is too long is cut at its source, and says so."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from piolet.events import cut


def test_what_fits_is_as_it_was() -> None:
    value = {"a": "x" * 100, "b": [1, {"c": None}]}
    assert cut.within(value, 200) == value


def test_the_longest_is_cut_and_the_rest_stays() -> None:
    found = cut.within({"reason": "too hot", "lines": ["x" * 50] * 100, "text": "y" * 5000, "n": 7}, 1000)
    assert (found["reason"], found["n"]) == ("too hot", 7)
    assert found["lines"].startswith("(cut, ") and found["lines"].endswith(" bytes)")
    assert found["text"].startswith("yyy") and found["text"].endswith("… (cut, 5002 bytes)")


def test_within_what_is_nested() -> None:
    found = cut.within({"details": {"keep": 1, "long": "z" * 4000}}, 600)
    assert found["details"]["keep"] == 1 and found["details"]["long"].startswith("zzz")


@pytest.mark.parametrize("most", [60, 300, 4000])
def test_whatever_it_is_it_fits(most: int) -> None:
    random_ = random.Random(18)

    def value(depth: int) -> Any:
        kind = random_.randrange(5 if depth else 3)
        if kind == 3:
            return {f"k{number}": value(depth - 1) for number in range(random_.randrange(8))}
        if kind == 4:
            return [value(depth - 1) for _ in range(random_.randrange(8))]
        return [random_.random(), "ü" * random_.randrange(900), "\x01" * random_.randrange(300)][kind]

    for _ in range(300):
        table = {f"key{number}": value(4) for number in range(random_.randrange(12))}
        before = json.dumps(table)
        assert len(json.dumps(cut.within(table, most), separators=(",", ":"))) <= most
        assert json.dumps(table) == before, "what is given is not changed"


def test_what_cannot_be_that_short() -> None:
    with pytest.raises(ValueError, match="too long"):
        cut.within({"a": 1}, 1)


def test_what_no_record_has() -> None:
    assert cut.plain({"n": 2**70, "m": -(2**63), "k": 2**62, "t": True}, 3) == {
        "n": 2.0**70, "m": -(2.0**63), "k": 2**62, "t": True,
    }  # fmt: skip
    assert cut.plain([[[1]]], 2) == [["(cut, 3 bytes)"]]
    assert cut.plain({1: {2: 3}}, 9) == {"1": {"2": 3}}
