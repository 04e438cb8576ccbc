"""The strict decoder of messages between pioletd's processes: what is not exactly of the declared types is refused."""

from __future__ import annotations

import os
import socket
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


def test_descriptors_come_beside_a_packet_and_are_closed_with_it() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, open("/dev/null") as null:
        before = len(os.listdir("/proc/self/fd"))
        packets.send(ours, b"two", [null.fileno(), null.fileno()])
        with packets.receive(theirs, 16, 2) as packet:
            assert (packet.data, len(packet.descriptors), packet.cut) == (b"two", 2, False)
            os.close(packet.descriptors.pop())
        packets.send(ours, b"more", [null.fileno()] * 3)
        with packets.receive(theirs, 3, 1) as packet:
            assert (packet.data, len(packet.descriptors), packet.cut) == (b"mor", 1, True)
        packets.send(ours, b"none")
        with packets.receive(theirs, 16) as packet:
            assert (packet.data, packet.descriptors) == (b"none", [])
        assert len(os.listdir("/proc/self/fd")) == before
        with pytest.raises(BlockingIOError):
            packets.receive(theirs, 16, flags=socket.MSG_DONTWAIT)


def test_an_end_with_something_unread_is_an_end() -> None:
    """But for who wants to know."""
    for reset_ends in (True, False):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            packets.send(ours, b"unread")
            theirs.close()
            if reset_ends:
                assert packets.receive(ours, 16) == packets.Packet()
            else:
                with pytest.raises(ConnectionResetError):
                    packets.receive(ours, 16, reset_ends=False)
            assert packets.receive(ours, 16).data == b""


def test_a_dictionary_is_a_message_too() -> None:
    assert packets.encode({"key": 1, "job": None}) == b'{"key": 1, "job": null}'
    assert (
        packets.encode({"key": 1, "inner": Inner("a", 2)}, compact=True) == b'{"key":1,"inner":{"text":"a","maybe":2}}'
    )
