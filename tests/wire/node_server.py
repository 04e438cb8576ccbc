"""A real pioletd server for the tests, in a process of its own, with a monitor that refuses every build."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from piolet.node import requests
from piolet.node.server.server import Server
from piolet.site.config import Config
from piolet.transport import packets


@dataclass(frozen=True)
class Answer:
    """READY or ERROR, as the tests look at it."""

    kind: str
    message: str
    hint: str


class RunningServer:
    """Starts the server; `stop` ends it and checks that it had not ended before."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "node.sock"
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener.bind(str(self.path))
        listener.listen(1024)
        self._monitor, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.pid = os.fork()
        if self.pid == 0:
            try:
                # Not what the tests before this one have open: the server's descriptors are counted.
                for descriptor in map(int, os.listdir("/proc/self/fd")):
                    if descriptor > 2 and descriptor not in (listener.fileno(), theirs.fileno()):
                        with contextlib.suppress(OSError):
                            os.close(descriptor)
                Server(listener, theirs, Config(), "node").run()
            finally:
                os._exit(0)
        listener.close()
        theirs.close()
        self._thread = threading.Thread(target=self._refuse_builds, daemon=True)
        self._thread.start()

    def _refuse_builds(self) -> None:
        while (message := socket.recv_fds(self._monitor, 1 << 18, 1))[0]:
            value = json.loads(message[0])
            for connection in message[1]:
                os.close(connection)
            if value["build"] is not None:
                self._monitor.send(packets.encode(requests.Answer(value["build"]["key"], "not in this test")))

    def connect(self) -> socket.socket:
        """Return a new connection."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # Blocking while the queue is full; a timeout set earlier would make that an error.
        connection.connect(str(self.path))
        connection.settimeout(20)
        return connection

    def ask(self, message: bytes) -> tuple[Answer, list[int]]:
        """Send a message on a new connection; return the answer and its descriptors."""
        with self.connect() as connection:
            connection.send(message)
            data, descriptors, _, _ = socket.recv_fds(connection, 8192, 4)
        kind = struct.unpack_from("=IHH", data)[2]
        if kind == 2:
            return Answer("ready", "", ""), descriptors
        message_, hint = (part.split(b"\0")[0].decode() for part in (data[16:1040], data[1040:]))
        return Answer("error", message_, hint), descriptors

    def wait_for_descriptors(self, at_most: int) -> None:
        """Wait until the server holds no more descriptors than that."""
        end = time.monotonic() + 10
        while (count := len(os.listdir(f"/proc/{self.pid}/fd"))) > at_most:
            assert time.monotonic() < end, f"the server still holds {count} descriptors"
            time.sleep(0.02)

    def stop(self) -> None:
        """End the server by ending its monitor."""
        assert os.waitpid(self.pid, os.WNOHANG) == (0, 0), "the server died during the test"
        # shutdown, not close: the thread that waits in recv holds the socket open.
        self._monitor.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)
        self._monitor.close()
        end = time.monotonic() + 5
        while os.waitpid(self.pid, os.WNOHANG) == (0, 0):
            if time.monotonic() > end:
                os.kill(self.pid, signal.SIGKILL)
            time.sleep(0.01)
