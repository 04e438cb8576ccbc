"""The strict decoder of messages between pioletd's processes: what is not exactly of the declared types is refused."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from piolet.base.errors import WireError
from piolet.transport import packets


@dataclass(frozen=True)
class Inner:
    text: str
    maybe: int | None = None


@dataclass(frozen=True)
class Outer:
    number: int
    ratio: float
    yes: bool
    inner: Inner
    many: tuple[Inner, ...] = ()
    pairs: list[tuple[str, float]] = field(default_factory=list)
    words: list[str] = field(default_factory=list)


GOOD = '{"number": 1, "ratio": 2, "yes": true, "inner": {"text": "a"}'


def test_what_was_encoded_comes_back() -> None:
    value = Outer(7, 0.5, False, Inner("x", 3), (Inner("y"), Inner("z", 0)), [("mark", 1.5)], ["a", "b"])
    assert packets.decode(Outer, packets.encode(value)) == value


def test_defaults_may_be_left_out() -> None:
    assert packets.decode(Outer, GOOD + "}") == Outer(1, 2.0, True, Inner("a"))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"null",
        b"1",
        b'"x"',
        b"\xff\xfe",
        "[" * 100_000,
        '{"number": ' + "9" * 5000 + "}",
        "{}",
        GOOD.replace("1", "true") + "}",
        GOOD.replace("1", "1.5") + "}",
        GOOD.replace("1", '"1"') + "}",
        GOOD.replace("1", "36893488147419103232") + "}",
        GOOD.replace("2", "NaN") + "}",
        GOOD.replace("2", "9" * 400) + "}",
        GOOD.replace("2", "1e999") + "}",
        GOOD.replace("true", "1") + "}",
        GOOD.replace('{"text": "a"}', "[]") + "}",
        GOOD.replace('{"text": "a"}', "null") + "}",
        GOOD.replace('{"text": "a"}', '{"text": 1}') + "}",
        GOOD.replace('{"text": "a"}', '{"text": "a", "maybe": "b"}') + "}",
        GOOD + ', "more": 1}',
        GOOD + ', "many": {}}',
        GOOD + ', "many": [1]}',
        GOOD + ', "pairs": [["a"]]}',
        GOOD + ', "pairs": [["a", 1, 2]]}',
        GOOD + ', "words": "ab"}',
        GOOD + ', "words": [null]}',
    ],
)
def test_what_is_malformed_is_refused(data: str | bytes) -> None:
    with pytest.raises(WireError, match="a message is"):
        packets.decode(Outer, data)
