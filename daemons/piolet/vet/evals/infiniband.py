"""Are the InfiniBand ports up, at full rate, and free of errors?"""

from __future__ import annotations

import glob
import os
from dataclasses import dataclass

from piolet.api import FAIL, PASS, Context, Eval, Inconclusive, Verdict, parameter
from piolet.vet.evals import _files

_ERRORS = ("symbol_error", "link_error_recovery", "link_downed", "port_rcv_errors", "local_link_integrity_errors",
           "excessive_buffer_overrun_errors", "VL15_dropped")  # fmt: skip


@dataclass(frozen=True)
class Infiniband(Eval):
    """Reads the ports of every adapter."""

    name = "infiniband"
    text = "InfiniBand ports are active, at their rate, and count no errors"
    how = "state, phys_state, rate and counters of every port whose link layer is InfiniBand"
    source = "/sys/class/infiniband"
    needs = "InfiniBand adapters"
    unit = "Gbit/s"
    better = "higher"

    devices: tuple[str, ...] = parameter((), text="the adapters that must be there; without it, all that are")
    min_rate: float = parameter(0.0, text="the least rate of each port", unit="Gbit/s", least=0)
    max_errors: int = parameter(0, text="errors that one port may have counted since it was reset", least=0)
    max_link_downed: int = parameter(10, text="how often one link may have gone down", least=0)

    def check(self, context: Context) -> Verdict:
        """Name every port that is wrong."""
        base = context.path("/sys/class/infiniband")
        there = sorted(glob.glob(f"{base}/*/ports/*"))
        ports = [port for port in there if _files.text(f"{port}/link_layer") != "Ethernet"]
        known, judged = ({_adapter(port) for port in some} for some in (there, ports))
        wrong = [f"{name} is missing" for name in self.devices if name not in known]
        wrong += [f"{name} has no InfiniBand port" for name in self.devices if name in known - judged]
        if not ports and not wrong:
            what = "no adapter has an InfiniBand port" if there else "there are no InfiniBand adapters"
            raise Inconclusive(what)
        slowest: float | None = None
        for port in ports:
            if self.devices and _adapter(port) not in self.devices:
                continue
            name = f"{_adapter(port)} port {os.path.basename(port)}"
            rate, problems = self._port(port)
            wrong += [f"{name} {problem}" for problem in problems]
            if rate is not None:
                slowest = rate if slowest is None else min(slowest, rate)
        limit = self.min_rate or None
        return Verdict(FAIL if wrong else PASS, "; ".join(wrong)[:500], "slowest port", slowest, limit, "Gbit/s")

    def _port(self, port: str) -> tuple[float | None, list[str]]:
        state = (_files.text(f"{port}/state") or "unknown").partition(":")[2].strip()
        physical = (_files.text(f"{port}/phys_state") or "unknown").partition(":")[2].strip()
        wrong = []
        if state != "ACTIVE":
            wrong.append(f"is {state or 'in an unknown state'} ({physical or 'unknown'}), not ACTIVE")
        words = (_files.text(f"{port}/rate") or "").split()
        try:
            rate = float(words[0])
        except (IndexError, ValueError):
            return None, [*wrong, "tells no rate"]
        if rate < self.min_rate:
            wrong.append(f"runs at {rate:g} Gbit/s, {self.min_rate:g} are wanted")
        counts = {name: _files.number(f"{port}/counters/{name}") or 0 for name in _ERRORS}
        downed = counts.pop("link_downed")
        if downed > self.max_link_downed:
            wrong.append(f"went down {downed} times")
        wrong += [f"counts {count} {name}" for name, count in counts.items() if count > self.max_errors]
        return rate, wrong


def _adapter(port: str) -> str:
    return port.split("/")[-3]
