"""How bad each known fault is, as data: one row each, with who says so and when that was looked up. Python 3.8.

A row cannot be made without its source and date. What has no row is `unknown`: told as a warning, never a verdict.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass

from piolet.vet.evals._rows import LOG_ROWS, NVML_ROWS, SXID_ROWS, XID_ROWS

FAIL, WARN, IGNORE = "fail", "warn", "ignore"
_SEVERITIES = (FAIL, WARN, IGNORE)
_ACTIONS = ("none", "watch", "restart", "update", "reset", "reboot", "contact")


@dataclass(frozen=True)
class Severity:
    """One row.

    kind      'xid', 'sxid', 'log' (a pattern of the kernel's log) or 'nvml'
    code      a number ('79'), a number with what its line says ('145:nonfatal'), a pattern, or a name of NVML's
    severity  'fail': the node is left out; 'warn': it is good, and the reason is shown; 'ignore'
    action    what the vendor asks for: none, watch, restart (the application), update (software), reset (the GPU),
              reboot (the node), contact (the vendor)
    text      what it means
    source    who says so
    date      when that was looked up, YYYY-MM-DD
    """

    kind: str
    code: str
    severity: str
    action: str
    text: str
    source: str
    date: str

    def __post_init__(self) -> None:
        where = f"the severity of {self.kind} {self.code}"
        if self.severity not in _SEVERITIES or self.action not in _ACTIONS:
            raise ValueError(f"{where} is not one of {', '.join(_SEVERITIES)}, or its action is unknown")
        if not self.code or not self.text:
            raise ValueError(f"{where} names no fault")
        sourced(where, self.source, self.date)

    def told(self) -> dict[str, str]:
        """Return what the result file says of a fault: what is asked for, and by whom."""
        return {"fault": f"{self.kind} {self.code}", "action": self.action, "source": self.source, "date": self.date}


def sourced(where: str, source: str, date: str) -> None:
    """Raise ValueError unless a row names its source and the day on which that was looked up."""
    try:
        datetime.date(*map(int, date.split("-")))
    except (TypeError, ValueError):
        date = ""
    if not source.strip() or not date:
        raise ValueError(f"{where} names no source, or no date like 2025-10-29")


def unknown(kind: str, code: str) -> Severity:
    """Return the row of what no table knows: a warning."""
    return Severity(kind, code, WARN, "watch", "not in the table of severities", "nobody", "2026-11-29")


def find(kind: str, code: str, qualifier: str = "") -> Severity:
    """Return the row of `code`, that with `qualifier` first ('nonfatal', '0x0')."""
    table = TABLES[kind]
    if qualifier and f"{code}:{qualifier}" in table:
        return table[f"{code}:{qualifier}"]
    return table.get(code) or unknown(kind, code)


def _rows(kind: str, groups: tuple[tuple[str, str, tuple[tuple[str, str, str, str], ...]], ...]) -> dict[str, Severity]:
    made = [Severity(kind, *row, source, date) for source, date, rows in groups for row in rows]
    return {row.code: row for row in made}


TABLES = {
    kind: _rows(kind, groups)
    for kind, groups in (("xid", XID_ROWS), ("sxid", SXID_ROWS), ("log", LOG_ROWS), ("nvml", NVML_ROWS))
}
