"""Listening sockets: whose path may be taken, with which mode, and what accepting does when it cannot."""

from __future__ import annotations

import errno
import logging
import os
import selectors
import socket
from pathlib import Path

import pytest
from piolet.system.peer import Peer
from piolet.transport.listener import Listener, clear_path, listen


class Full:
    """A listening socket of a process that has no descriptor left."""

    def __init__(self) -> None:
        self._end, _ = socket.socketpair()

    def fileno(self) -> int:
        return self._end.fileno()

    def setblocking(self, _: bool) -> None:
        pass

    def accept(self) -> tuple[socket.socket, str]:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def client(path: Path) -> socket.socket:
    """Return a connection to `path`."""
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    channel.connect(str(path))
    return channel


def test_a_dead_ones_place_is_taken_and_a_living_ones_is_not(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    assert clear_path(str(path))
    with listen(str(path), 0o640, 8) as first:
        assert path.stat().st_mode & 0o777 == 0o640 and not first.getblocking()
        assert not clear_path(str(path)) and path.exists()
    assert clear_path(str(path)) and not path.exists()


def test_a_file_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    path.write_text("x")
    assert clear_path(str(path)) and path.exists()
    with pytest.raises(OSError, match="in use"):
        listen(str(path), 0o600, 8)


def test_in_doubt_nobodys_place_is_taken_but_by_who_says_so(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.bind(str(path))
        other.listen(1)
        with pytest.raises(OSError, match="rotocol"):
            clear_path(str(path))
        assert path.exists()
        assert clear_path(str(path), sure=False) and not path.exists()


def test_so_many_are_taken_in_a_turn_and_it_is_known_whose_they_are(tmp_path: Path) -> None:
    taken: list[tuple[socket.socket, Peer]] = []
    path = tmp_path / "a.sock"
    with listen(str(path), 0o600, 8) as listening, selectors.DefaultSelector() as selector:
        clients = [client(path) for _ in range(3)]
        one = Listener(selector, listening, lambda *both: taken.append(both), logging.getLogger("piolet"), at_once=2)
        assert [key.data for key, _ in selector.select(0)] == [one.accept]
        one.accept()
        assert len(taken) == 2
        one.accept()
        assert len(taken) == 3
        assert {who for _, who in taken} == {Peer(os.getpid(), os.geteuid(), os.getegid())}
        assert not any(channel.getblocking() for channel, _ in taken)
    for channel in (*clients, *(channel for channel, _ in taken)):
        channel.close()


def test_without_descriptors_it_says_so_and_pauses(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    with selectors.DefaultSelector() as selector:
        full: object = Full()
        one = Listener(selector, full, lambda *_: None, logging.getLogger("piolet"), at_once=64, what="one")  # type: ignore[arg-type]
        one.accept()
    assert [record.getMessage() for record in caplog.records] == ["cannot take one: Too many open files"]
    assert slept == [0.05]
