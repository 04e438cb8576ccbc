"""Are variables of the step's environment set, and to what they should be?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from piolet.api import FAIL, PASS, USER, Context, Eval, Verdict, parameter


@dataclass(frozen=True)
class Env(Eval):
    """Compares variables."""

    name = "env"
    text = "variables of the environment are set, or have a value"
    how = "compares the step's environment with 'expected'; a null value: set to anything"
    source = "the step's environment"

    expected: Mapping[str, str | None] = parameter({}, text="name: value, or name: null for 'must be set'")

    def check(self, context: Context) -> Verdict:
        """Name every variable that is wrong."""
        wrong = []
        for name, value in self.expected.items():
            actual = context.environ.get(name)
            if actual is None:
                wrong.append(f"{name} is not set")
            elif value is not None and actual != value:
                wrong.append(f"{name} is '{actual[:80]}', not '{value[:80]}'")
        return Verdict(FAIL, "; ".join(wrong)[:500], whose=USER) if wrong else Verdict(PASS)
