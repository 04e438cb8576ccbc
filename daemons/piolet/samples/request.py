"""What stands after `--score=`, and the definition that travels with the step: checked where the user types it.

    interval=100ms   between two samples            collector=NAME   auto, gpm, dcgm, nvml or host
    out=DIR          where the data set goes; %j and %s become the numbers of job and step, %r "-r1" after a requeue
    html             make the HTML report, too      label=TEXT       a name for the report

A definition is canonical JSON. The sampler reads it as the word of a user: every field is checked again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from piolet.base import units
from piolet.base.errors import ScoreError
from piolet.base.nearest import nearest
from piolet.samples.choose import NAMES
from piolet.steps import identity

PERIOD_LEAST, PERIOD_MOST = 0.1, 3600.0
OUT_MAX, LABEL_MAX = 3500, 200
DEFAULT_OUT = "piolet-score-%j.%s%r"
_KINDS = {"period": (int, float), "out": (str,), "collector": (str,), "label": (str,), "html": (bool,)}


@dataclass(frozen=True)
class Wish:
    """A step's scoring.

    period   seconds between samples
    out      absolute path of the directory, in which %j and %s stand for job and step, %r for "-rN" after N requeues
    """

    period: float = 0.1
    out: str = DEFAULT_OUT
    collector: str = "auto"
    label: str = ""
    html: bool = False

    def to_json(self) -> bytes:
        """Return the definition."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":")).encode()

    def directory(self, job: int, step: int, restarts: int) -> str:
        """Return where the data set of a step is."""
        return self.out.replace("%j", str(job)).replace("%s", str(step)).replace("%r", identity.run_suffix(restarts))


def period_of(text: str, least: float = PERIOD_LEAST) -> float:
    """Return the seconds in "100ms", "1s", "2min" or "1". Raises ValueError: it is none, or out of bounds."""
    value = units.seconds_of(text, plain="s")
    if value is None or not least <= value <= PERIOD_MOST:
        raise ValueError(text)
    return value


def parse(text: str, cwd: str, default: Wish) -> Wish:
    """Return what the user wishes; `default` is the site's. Raises ScoreError."""
    readers: dict[str, Callable[[str], Any]] = {
        "interval": _period,
        "out": lambda value: _given("out", value),
        "collector": _collector,
        "label": lambda value: _given("label", value)[:LABEL_MAX],
    }
    fields = {"interval": "period"}
    values: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = part.partition("=")
        if name == "html" and not equals:
            values["html"] = True
        elif name in readers:
            values[fields.get(name, name)] = readers[name](value)
        else:
            near = nearest(name, [*readers, "html"], fold=False)
            hint = f"did you mean '{near}'?" if near else f"there are: {', '.join([*readers, 'html'])}"
            raise ScoreError(f"--score has no option '{part[:60]}'", hint)
    wish = replace(default, **values)
    out = os.path.normpath(os.path.join(cwd, wish.out))
    if len(os.fsencode(out)) > OUT_MAX:
        raise ScoreError("the path after out= is too long")
    return replace(wish, out=out)


def from_json(data: bytes) -> Wish:
    """Return the wish in a definition. Raises ScoreError: it is malformed."""
    try:
        # Strictly: json.loads takes bytes that are no UTF-8 by half.
        wish = Wish(**json.loads(data.decode("utf-8")))
        for name, kinds in _KINDS.items():
            if type(getattr(wish, name)) not in kinds:
                raise TypeError(f"{name} is of another kind")
        sound = (
            PERIOD_LEAST <= wish.period <= PERIOD_MOST
            and wish.out.startswith("/")
            and len(os.fsencode(wish.out)) <= OUT_MAX
            and "\0" not in wish.out
            and wish.collector in NAMES
            and len(wish.label) <= LABEL_MAX
        )
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ScoreError(f"the definition of --score is malformed: {str(error)[:100]}") from None
    if not sound:
        raise ScoreError("the definition of --score is malformed: a value is out of bounds")
    return wish


def _period(text: str) -> float:
    try:
        return period_of(text)
    except ValueError:
        raise ScoreError(f"'{text}' is no interval from 100ms to 1h", "write for example: interval=100ms") from None


def _given(name: str, value: str) -> str:
    if not value or "\0" in value:
        raise ScoreError(f"{name}= of --score is empty")
    return value


def _collector(value: str) -> str:
    if value not in NAMES:
        raise ScoreError(f"there is no collector '{value}'", f"there are: {', '.join(NAMES)}")
    return value
