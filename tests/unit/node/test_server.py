"""pioletd's unprivileged half, by itself."""

from __future__ import annotations

import gc
import os
import socket
import weakref
from pathlib import Path

from piolet.base.errors import PioletError
from piolet.environment.definition import Definition
from piolet.node.server.connection import Connection
from piolet.node.server.server import Server
from piolet.site.config import Config
from piolet.transport import wire


def test_a_step_is_freed_when_it_is_forgotten(tmp_path: Path) -> None:
    """Not when the garbage collector comes, which is some hundred steps later."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(tmp_path / "node.sock"))
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            server = Server(listener, ours, Config(), "node1.0")
            start = wire.Start(wire.PLUGIN_ENVIRONMENT, 7, 0, os.getuid(), os.getgid(), [], b"{}", 1000, "node1")
            connection = Connection(1, theirs, os.getpid(), start=start, definition=Definition("e.toml"))
            gc.disable()
            try:
                server._look_up(connection, start)
                for threads in server._threads.values():
                    threads.shutdown()
                server._forget(connection)
                seen = weakref.ref(connection)
                del connection
                assert seen() is None
            finally:
                gc.enable()


def test_a_step_that_is_refused_is_told_once(tmp_path: Path) -> None:
    told: list[tuple[int, str | None, str]] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(tmp_path / "node.sock"))
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            server = Server(
                listener, ours, Config(), "node1.0",
                refused=lambda start, image, why: told.append((start.job, image, why)),
            )  # fmt: skip
            start = wire.Start(wire.PLUGIN_ENVIRONMENT, 7, 0, os.getuid(), os.getgid(), [], b"{}", 1000, "node1")
            connection = Connection(1, theirs, os.getpid(), start=start, definition=Definition("e.toml"))
            theirs.setblocking(False)
            server._fail(connection, PioletError("the image store does not answer on this node"))
            server._fail(connection, PioletError("again"))
            server._fail(Connection(2, theirs, os.getpid()), PioletError("no step"))
    assert told == [(7, None, "the image store does not answer on this node")]
