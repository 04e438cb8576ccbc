"""Network ports that send again, count errors, or go down."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar

import numpy as np

from piolet.api import CannotTell, Detector, Finding, Limit, Observed
from piolet.observe.detectors import _signals as signals


class LinkRetries(Detector):
    """A port's rate of retries or errors that stays up, or a link that went down."""

    name, version = "link_retries", 2
    text = "network ports that keep sending packets again, count errors, or go down"
    how = "a running median of a port's retries or errors per second stays above a limit; or an event link.flap"
    needs = "retries or errors of ports, or the kernel's events"
    effect, unit = 10.0, "1/s"
    limits: ClassVar[Mapping[str, Limit]] = {
        "rate": signals.guess(3, "1/s", "a healthy port sends single packets again, not several each second"),
        "seconds": signals.guess(120, "s", "longer than a burst"),
    }

    def find(self, step: Observed) -> Iterable[Finding]:
        """Return a finding for each port."""
        events = step.table("events", ["node", "subject", "kind", "source"]).to_pylist()
        flaps: dict[tuple[str, str], int] = {}
        for event in events:
            if event["kind"] == "link.flap":
                port = str(event["subject"] or "").removeprefix("port:")
                flaps[event["node"] or "", port] = flaps.get((event["node"] or "", port), 0) + 1
        found: dict[tuple[str, str], Finding] = {}
        told = any(event["source"] in ("kernel", "root") for event in events)
        for quantity in ("retries", "errors"):
            keys, rates = step.lines("net", quantity)
            told |= bool(keys) and signals.covered(rates) >= signals.COVERED
            window = max(5, int(np.ceil(60 / step.width)))
            high = signals.mostly(rates > self.limit("rate"), ~np.isnan(rates), window)
            for row in np.flatnonzero(high.any(axis=1)):
                first, end = signals.longest(high[row], bridge=2)
                if (end - first) * step.width >= self.limit("seconds") and end - first >= 5:
                    known = found.get(keys[row])
                    mine = self._finding(step, keys[row], quantity, rates[row, first:end], (first, end), flaps)
                    if known is None or mine.effect > known.effect:
                        found[keys[row]] = mine
        for (node, port), many in flaps.items():
            if (node, port) not in found:
                found[node, port] = Finding(
                    float(many), f"port {port} of {node} went down {_times(many)}", _ADVICE, None, None, node or None,
                    port,
                    {"flaps": many}, unit="count",
                )  # fmt: skip
        if not told and not found:
            raise CannotTell("nobody counted retries or errors of the ports")
        return list(found.values())

    def _finding(
        self,
        step: Observed,
        key: tuple[str, str],
        quantity: str,
        rates: np.ndarray,
        span: tuple[int, int],
        flaps: dict[tuple[str, str], int],
    ) -> Finding:
        node, port = key
        rate = float(np.nanmean(rates))
        many = flaps.get(key, 0)
        what = "sent packets again" if quantity == "retries" else "counted errors"
        also = f", and went down {_times(many)}" if many else ""
        return Finding(
            rate,
            f"port {port} of {node} {what} {rate:.0f} times a second for "
            f"{signals.minutes((span[1] - span[0]) * step.width)}{also}",
            _ADVICE, step.time(span[0]), step.time(span[1]), node, port, {"rate": round(rate, 2), "flaps": many},
        )  # fmt: skip


def _times(many: int) -> str:
    return "once" if many == 1 else f"{many} times"


_ADVICE = "show the port to the site: a cable, a connector or a switch port; leave the node out until then"
