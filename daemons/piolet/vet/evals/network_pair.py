"""How fast can two nodes talk to each other?"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

from piolet.api import FAIL, USER, Context, Eval, Inconclusive, Verdict, at_least, parameter
from piolet.vet.evals._link import Link, LinkError


@dataclass(frozen=True)
class NetworkPair(Eval):
    """Connects to the partner that the round gives this node."""

    name = "network_pair"
    text = "latency and bandwidth between nodes over TCP"
    how = "rounds of disjoint pairs; median of round trips of one byte; the slower direction of one stream"
    source = "TCP; both prove that they know the run's token"
    needs = "at least two nodes"
    unit = "GB/s"
    better = "higher"
    scope = "pair"
    loads = frozenset({"network"})
    timeout_s = 5.0
    effect = 0.3

    min_bandwidth: float = parameter(0.0, text="the least bandwidth of the slower direction", unit="GB/s", least=0)
    max_latency: float = parameter(0.0, text="the longest median round trip; 0: any", unit="s", least=0)
    max_offset: float = parameter(0.0, text="the largest difference of the clocks; 0: any", unit="s", least=0)
    size: float = parameter(32e6, text="sent in each direction", unit="B", least=1)
    pings: int = parameter(50, text="round trips", least=1)
    rounds: int = parameter(0, text="rounds, each with another partner; 0: ceil(log2 N) + 4 for N nodes", least=0)

    def check(self, context: Context) -> Verdict:
        """Measure the pair; the verdict is of the pair, and who is at fault is found from all of them."""
        peer = context.facts.get("peer")
        if peer is None:
            raise Inconclusive("there is no other node to measure with", USER)
        token = bytes.fromhex(context.facts["token"])
        try:
            link = Link(peer["host"], peer["port"], token, min(2.0, context.remaining()))
        except LinkError as error:
            return Verdict(FAIL, str(error))
        try:
            trips = link.ping(self.pings)
            offset = link.offset()
            there, back = link.send(int(self.size)), link.receive(int(self.size))
        except (OSError, LinkError) as error:
            return Verdict(FAIL, f"the connection with {peer['node']} broke: {error}")
        finally:
            link.close()
        latency, bandwidth = median(trips), self.size / max(there, back) / 1e9
        details = {"latency_s": latency, "latency_max_s": max(trips), "clock_offset_s": offset,
                   "send": self.size / there / 1e9, "receive": self.size / back / 1e9}  # fmt: skip
        if self.max_latency and latency > self.max_latency:
            reason = f"the round trip takes {latency:.3g} s, {self.max_latency:g} s are allowed"
            return Verdict(FAIL, reason, "bandwidth", bandwidth, self.min_bandwidth or None, "GB/s", details)
        if self.max_offset and abs(offset) > self.max_offset:
            reason = f"the clocks differ by {abs(offset):.3g} s, {self.max_offset:g} s are allowed"
            return Verdict(FAIL, reason, "bandwidth", bandwidth, self.min_bandwidth or None, "GB/s", details)
        return at_least("bandwidth", bandwidth, self.min_bandwidth or None, "GB/s", **details)
