"""A time server (SNTP, RFC 4330) whose clock is wrong by a known time: in place of a node whose own clock is."""

from __future__ import annotations

import socket
import struct
import threading
import time
from typing import Self


class TimeServer(threading.Thread):
    """Answers SNTP with a clock that is `ahead` seconds off, within a `with` statement."""

    def __init__(self, ahead: float, silent: bool = False, address: str = "127.0.0.1", port: int = 0) -> None:
        super().__init__(daemon=True)
        self.ahead, self.silent = ahead, silent
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((address, port))
        self.port = int(self.socket.getsockname()[1])
        self.name_of = f"{address}:{self.port}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
            last.sendto(b"", self.socket.getsockname())
        self.join()
        self.socket.close()

    def run(self) -> None:
        while True:
            data, address = self.socket.recvfrom(100)
            if not data:
                return
            now = time.time() + self.ahead + 2208988800
            stamp = struct.pack("!II", int(now), int(now % 1 * 2**32))
            answer = b"\x24\x02" + bytes(22) + data[40:48] + stamp + stamp
            if not self.silent:
                self.socket.sendto(answer, address)
