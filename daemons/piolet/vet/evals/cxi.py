"""Are the HPE Slingshot ports up and at full speed, and do their links stay up?"""

from __future__ import annotations

import glob
import os
from dataclasses import dataclass

from piolet.api import EITHER, FAIL, NODE, PASS, Context, Eval, Inconclusive, Verdict, parameter
from piolet.vet.evals import _files


@dataclass(frozen=True)
class Cxi(Eval):
    """Reads the ports of every Cassini adapter and their network interfaces."""

    name = "cxi"
    text = "Slingshot ports are up, at their speed, and their links stay up"
    how = "link and speed of every port, and carrier changes of its network interface"
    source = "/sys/class/cxi, /sys/class/net"
    needs = "Slingshot adapters"
    unit = "Gbit/s"
    better = "higher"

    count: int = parameter(0, text="how many adapters there must be; 0: at least one", least=0)
    min_speed: float = parameter(0.0, text="the least speed of each port", unit="Gbit/s", least=0)
    max_link_downs: int = parameter(10, text="how often a link may have gone down since the node was started", least=0)

    def check(self, context: Context) -> Verdict:
        """Name every port that is wrong."""
        devices = sorted(glob.glob(context.path("/sys/class/cxi/cxi*")))
        if not devices and not self.count:
            raise Inconclusive("there are no Slingshot adapters")
        wrong = []
        if self.count and len(devices) != self.count:
            wrong.append(f"there are {len(devices)} Slingshot adapters, not {self.count}")
        slowest: float | None = None
        for device in devices:
            name = os.path.basename(device)
            link = _files.text(f"{device}/device/port/link")
            if link != "up":
                wrong.append(f"the link of {name} is {link or 'unknown'}")
            speed = _speed(_files.text(f"{device}/device/port/speed") or "")
            if speed is None:
                wrong.append(f"{name} tells no speed")
            else:
                slowest = speed if slowest is None else min(slowest, speed)
                if speed < self.min_speed:
                    wrong.append(f"{name} runs at {speed:g} Gbit/s, {self.min_speed:g} are wanted")
            for interface in glob.glob(f"{device}/device/net/*"):
                downs = _files.number(f"{interface}/carrier_down_count") or 0
                if downs > self.max_link_downs:
                    wrong.append(f"the link of {os.path.basename(interface)} went down {downs} times")
        limit = self.min_speed or None
        # How many adapters and which speed there must be says the protocol.
        whose = NODE if any(text.startswith("the link") for text in wrong) else EITHER
        return Verdict(
            FAIL if wrong else PASS, "; ".join(wrong)[:500], "slowest port", slowest, limit, "Gbit/s", whose=whose
        )


def _speed(text: str) -> float | None:
    """Return the number in a speed such as 'BS_200G' or 'CK_400G'."""
    digits = "".join(c for c in text.rpartition("_")[2] if c.isdigit())
    return float(digits) if digits else None
