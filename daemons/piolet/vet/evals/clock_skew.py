"""Is the clock right? Against a time server, or, without one, what the kernel knows of its synchronisation."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import time
from dataclasses import dataclass

from piolet.api import Context, Eval, Inconclusive, Verdict, at_most, parameter

# RFC 4330: seconds from 1900 to 1970, a packet of 48 bytes, the transmit time at 40.
_NTP_EPOCH = 2208988800
_STA_UNSYNC = 0x0040
_TIMEX_WORDS = 208


@dataclass(frozen=True)
class ClockSkew(Eval):
    """Asks four times and believes the quickest answer."""

    name = "clock_skew"
    text = "the clock's offset"
    how = "SNTP to 'server', four questions, the quickest counts; without a server adjtimex's estimated error"
    source = "a time server, or the kernel"
    needs = "a server, or a clock that something synchronises"
    unit = "s"
    better = "lower"

    max_offset: float = parameter(0.1, text="the largest offset", unit="s", least=0)
    server: str = parameter("", text="a time server, HOST or HOST:PORT")

    def check(self, context: Context) -> Verdict:
        """Measure the offset."""
        if not self.server:
            return at_most("estimated clock error", _kernel_error(), self.max_offset, "s")
        host, _, port = self.server.partition(":")
        samples = []
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as channel:
            try:
                channel.connect((host, int(port or 123)))
            except (OSError, ValueError) as error:
                raise Inconclusive(f"cannot reach the time server {self.server}: {error}") from None
            for _ in range(4):
                channel.settimeout(min(0.5, max(0.01, context.remaining() / 2)))
                sample = _ask(channel)
                if sample is not None:
                    samples.append(sample)
        if not samples:
            raise Inconclusive(f"the time server {self.server} does not answer")
        delay, offset = min(samples)
        if delay / 2 > self.max_offset:
            raise Inconclusive(f"the time server {self.server} answers too slowly ({delay:.3g} s) to judge the offset")
        return at_most("clock offset", abs(offset), self.max_offset, "s", signed=offset, round_trip=delay)


def _ask(channel: socket.socket) -> tuple[float, float] | None:
    """Return round trip and offset of one exchange, in seconds, or None."""
    cookie = os.urandom(8)  # the server sends it back: only an answer to this question counts
    sent = time.time()
    try:
        channel.send(b"\x23" + bytes(39) + cookie)
        answer = channel.recv(512)
    except OSError:
        return None
    received = time.time()
    if len(answer) < 48 or answer[0] & 7 != 4 or answer[24:32] != cookie or answer[1] == 0:
        return None
    there, back = (_time(answer[start : start + 8]) for start in (32, 40))
    return (received - sent) - (back - there), ((there - sent) + (back - received)) / 2


def _time(data: bytes) -> float:
    seconds, fraction = struct.unpack("!II", data)
    return float(seconds - _NTP_EPOCH + fraction / 2**32)


def _kernel_error() -> float:
    """Return the kernel's estimate of the clock's error, in seconds. Raises Inconclusive."""
    timex = ctypes.create_string_buffer(_TIMEX_WORDS)
    if ctypes.CDLL(None, use_errno=True).adjtimex(timex) < 0:
        raise Inconclusive("the kernel does not tell the state of its clock")
    # struct timex on 64-bit Linux: modes, offset, freq, maxerror, esterror, status.
    _, _, _, _, estimated, status = struct.unpack_from("@Illlli", timex)
    if status & _STA_UNSYNC:
        raise Inconclusive("nothing synchronises the clock; name a 'server' to compare it with")
    return float(estimated) / 1e6
