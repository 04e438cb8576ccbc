"""What stands after `--vet=`: FILE[,report=PATH][,min_nodes=N][,retries=N][,budget=30s][,on_inconclusive=…]. Pure."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from piolet.base import units
from piolet.base.errors import VetError
from piolet.vet.runner.plan import Plan

_FORM = "write --vet=FILE[,report=PATH][,min_nodes=N][,retries=N][,budget=30s][,on_inconclusive=fail|warn|pass]"
_RETRIES_MAX = 10
_BUDGET_MAX_S = 3600.0


@dataclass(frozen=True)
class VetRequest:
    """A request. None: as the protocol says.

    report      where the result file goes; '': vet-JOB.json among the user's results
    retries     how often srun may ask for other nodes, where the allocation is its own
    """

    path: str
    report: str = ""
    min_nodes: int | None = None
    retries: int = 1
    budget_s: float | None = None
    on_inconclusive: str | None = None

    def with_retries(self, retries: int) -> str:
        """Return the text of the same request with another number of retries."""
        words = [self.path, f"retries={retries}"]
        if self.report:
            words.append(f"report={self.report}")
        if self.min_nodes is not None:
            words.append(f"min_nodes={self.min_nodes}")
        if self.budget_s is not None:
            words.append(f"budget={self.budget_s:g}s")
        if self.on_inconclusive is not None:
            words.append(f"on_inconclusive={self.on_inconclusive}")
        return ",".join(words)

    def apply(self, plan: Plan) -> Plan:
        """Return the plan with what this request says otherwise."""
        tasks = plan.tasks
        if self.on_inconclusive is not None:
            tasks = tuple(dataclasses.replace(task, on_inconclusive=self.on_inconclusive) for task in tasks)
        return dataclasses.replace(
            plan,
            tasks=tasks,
            budget_s=plan.budget_s if self.budget_s is None else self.budget_s,
            min_nodes=plan.min_nodes if self.min_nodes is None else self.min_nodes,
        )


def parse(text: str) -> VetRequest:
    """Return the request in `text`. Raises VetError."""
    path, *settings = text.split(",")
    if not path:
        raise VetError("--vet names no protocol", _FORM)
    found = VetRequest(path)
    seen = set()
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not value:
            raise VetError(f"'{setting}' in --vet is no setting", _FORM)
        if key in seen:
            raise VetError(f"'{key}' is twice in --vet", _FORM)
        seen.add(key)
        found = _set(found, key, value)
    return found


def _set(request: VetRequest, key: str, value: str) -> VetRequest:
    if key == "report":
        return dataclasses.replace(request, report=value)
    if key == "min_nodes":
        return dataclasses.replace(request, min_nodes=_whole(key, value, 1, 1_000_000))
    if key == "retries":
        return dataclasses.replace(request, retries=_whole(key, value, 0, _RETRIES_MAX))
    if key == "budget":
        try:
            seconds = units.parse(value, "s")
        except ValueError as error:
            raise VetError(f"'budget' in --vet must be {error}, not '{value}'", _FORM) from None
        if not 0 < seconds <= _BUDGET_MAX_S:
            raise VetError(f"'budget' in --vet must be more than 0 and at most {_BUDGET_MAX_S:g} s", _FORM)
        return dataclasses.replace(request, budget_s=seconds)
    if key == "on_inconclusive":
        if value not in ("fail", "warn", "pass"):
            raise VetError(f"'on_inconclusive' in --vet must be fail, warn or pass, not '{value}'", _FORM)
        return dataclasses.replace(request, on_inconclusive=value)
    raise VetError(f"--vet has no setting '{key}'", _FORM)


def _whole(key: str, value: str, least: int, most: int) -> int:
    if not (value.isascii() and value.isdigit() and least <= int(value) <= most):
        raise VetError(f"'{key}' in --vet must be a whole number from {least} to {most}, not '{value}'", _FORM)
    return int(value)
