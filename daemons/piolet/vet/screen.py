"""One screen of text for a vetting: a line for each eval, then what is wrong and with whom. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from piolet.api import FAIL, INCONCLUSIVE, PASS
from piolet.base import texts
from piolet.vet import problems
from piolet.vet.runner.plan import Plan, Task
from piolet.vet.runner.records import Record
from piolet.vet.verdicts import Decision

_REASON_WIDTH = 110


def table(plan: Plan, decision: Decision) -> list[str]:
    """Return a line for each eval: counts, the middle value, and the worst nodes."""
    width = max([4, *(len(task.name) for task in plan.tasks)])
    width = min(width, 40)
    rows = [("eval", f"{'pass':>5} {'fail':>5} {'incon':>5}", "median", "worst")]
    by_eval: dict[str, list[Record]] = {task.name: [] for task in plan.tasks}
    for record in decision.records:
        by_eval[record.eval].append(record)
    for task in plan.tasks:
        own = by_eval[task.name]
        counts = [sum(record.outcome == outcome for record in own) for outcome in (PASS, FAIL, INCONCLUSIVE)]
        name = task.name if len(task.name) <= width else task.name[: width - 1] + "…"
        numbers = f"{counts[0]:5} {counts[1]:5} {counts[2]:5}"
        rows.append((name, numbers, _median(own), _worst(task, own)))
    return [line.rstrip() for line in texts.columns(rows, (width, 17, 14), right=(2,))]


def render(plan: Plan, decision: Decision, seconds: float) -> str:
    """Return the whole screen, with a line end."""
    cached = sum(record.cached for record in decision.records)
    good, total = len(decision.good), len(decision.state)
    kept = f", {cached} of {len(decision.records)} results from the cache" if cached else ""
    lines = [
        f"vetting '{plan.name}': {good} of {texts.counted(total, 'node')} good, {seconds:.2f} s{kept}",
        *table(plan, decision),
        *problems.lines(plan, decision),
        *(f"note: {note}" for note in decision.notes),
    ]
    if decision.abort:
        lines.append(f"stopped: {_short(decision.abort)}")
    return "\n".join(lines) + "\n"


def brief(plan: Plan, decision: Decision, age_s: float) -> str:
    """Return what is said of a vetting that is used again."""
    good, total = len(decision.good), len(decision.state)
    first = f"vetting '{plan.name}': {good} of {texts.counted(total, 'node')} good, vetted {age_s:.0f} s ago"
    return "\n".join([first, *problems.lines(plan, decision)]) + "\n"


def why(records: Sequence[Record], node: str) -> list[str]:
    """Return everything that was found of one node, what is bad first."""
    own = [record for record in records if record.node == node]
    order = (FAIL, INCONCLUSIVE, PASS)
    lines = []
    for record in sorted(own, key=lambda one: order.index(one.outcome)):
        measured = (
            f" {record.measure} {_number(record.value)} {record.unit}".rstrip() if record.value is not None else ""
        )
        limit = f" (limit {_number(record.limit)} {record.unit})".replace(" )", ")") if record.limit is not None else ""
        reason = f": {record.reason}" if record.reason else ""
        text = f": {f'{measured}{limit}'.strip()}" if measured or limit else ""
        text += reason if not text else reason.replace(": ", "; ", 1)
        age = ", cached" if record.cached else ""
        lines.append(f"{record.outcome:12} {record.eval}{text} [{record.seconds:.3f} s{age}]")
    return lines


def _median(own: Sequence[Record]) -> str:
    measured = [record for record in own if record.value is not None]
    if not measured:
        return ""
    return f"{_number(median(record.value or 0.0 for record in measured))} {measured[0].unit}".rstrip()


def _worst(task: Task, own: Sequence[Record]) -> str:
    bad = [record.node for record in own if record.outcome != PASS]
    if bad:
        return ", ".join(bad[:3]) + (f" and {len(bad) - 3} more" if len(bad) > 3 else "")
    with_value = [record for record in own if record.value is not None]
    better = next((record.better for record in with_value if record.better), task.better)
    if len(with_value) < 2 or better not in ("higher", "lower"):
        return ""
    pick = min if better == "higher" else max
    worst = pick(with_value, key=lambda record: record.value or 0.0)
    return f"{worst.node} {_number(worst.value)}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _short(text: str) -> str:
    return text if len(text) <= _REASON_WIDTH else text[: _REASON_WIDTH - 1] + "…"
