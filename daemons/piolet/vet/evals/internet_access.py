"""Can a host be reached over TCP?"""

from __future__ import annotations

import socket
from dataclasses import dataclass

from piolet.api import FAIL, PASS, Context, Eval, Verdict, parameter


@dataclass(frozen=True)
class InternetAccess(Eval):
    """Connects."""

    name = "internet_access"
    text = "a host can be reached over TCP"
    how = "opens a connection and closes it"
    source = "the network"
    unit = "s"
    better = "lower"

    host: str = parameter(text="a name or an address")
    port: int = parameter(53, text="the port", least=1)

    def check(self, context: Context) -> Verdict:
        """Connect once."""
        left = context.remaining()
        before = context.deadline - left
        try:
            with socket.create_connection((self.host, self.port), timeout=max(0.01, left)):
                seconds = context.deadline - context.remaining() - before
        except TimeoutError:
            return Verdict(
                FAIL, f"{self.host}:{self.port} did not answer within {left:.3g} s", "connect", left, left, "s"
            )
        except OSError as error:
            why = error.strerror or str(error)
            return Verdict(FAIL, f"{self.host}:{self.port} cannot be reached: {why}")
        return Verdict(PASS, "", "connect", seconds, None, "s")
