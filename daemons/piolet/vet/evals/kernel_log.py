"""Does the kernel's log name a hardware fault of this node: memory, CPUs, PCIe, drives, network adapters?"""

from __future__ import annotations

import math
from dataclasses import dataclass

from piolet.api import FAIL, NODE, PASS, Context, Eval, Inconclusive, Verdict, parameter
from piolet.vet.evals import _log, _severities


@dataclass(frozen=True)
class KernelLog(Eval):
    """Judges the lines of drivers by a table of severities. What GPUs say of themselves is gpu_health's."""

    name = "kernel_log"
    text = "hardware faults in the kernel's log since the boot"
    how = "lines of drivers by a table of severities: some are faults of the node, some warnings for a day"
    source = "the kernel's log as pioletd reads it"
    needs = "pioletd"

    fault_age: float = parameter(0.0, text="how long a fault counts; 0: until a reboot", unit="s", least=0)
    warn_age: float = parameter(86400.0, text="how long a warning counts", unit="s", least=0)

    def check(self, context: Context) -> Verdict:
        """Name each kind of fault once, with how often and when it was said last."""
        log = _log.lines(context)
        if log is None:
            raise Inconclusive("the kernel's log cannot be read")
        kinds: dict[str, list[_log.Event]] = {}
        for event in _log.node_events(log):
            bound = (self.fault_age or math.inf) if event.row.severity == _severities.FAIL else self.warn_age
            if event.age is None or event.age <= bound:
                kinds.setdefault(event.row.code, []).append(event)
        said = [(events[-1].row.severity, _sentence(events)) for events in kinds.values()]
        wrong = [text for severity, text in said if severity == _severities.FAIL]
        warnings = [text for severity, text in said if severity != _severities.FAIL]
        reason = "; ".join(wrong + warnings)[:500]
        details = {"lines": len(log), "judged_by": [events[-1].row.told() for events in kinds.values()]}
        return Verdict(FAIL if wrong else PASS, reason, "faults", len(wrong), 0, "", details, NODE)


def _sentence(events: list[_log.Event]) -> str:
    last = events[-1]
    often = f"{len(events)} times, last " if len(events) > 1 else ""
    return f"{last.row.text}, {often}{_log.ago(last.age)}: {last.text[:120]}"
