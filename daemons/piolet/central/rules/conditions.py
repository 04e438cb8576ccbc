"""Conditions in CEL (Common Expression Language), within bounds: one expression without loops, over known names.

The language is https://github.com/google/cel-spec; the interpreter is Rust's. An expression has at most LENGTH_MAX
characters, names that are known, and operators and functions of a list; macros that loop are not among them. So its
time is bounded by its length.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import cel  # type: ignore[import-not-found,import-untyped,unused-ignore]

from piolet.base.nearest import nearest

LENGTH_MAX = 1000
_FUNCTIONS = {
    "_&&_", "_||_", "!_", "_==_", "_!=_", "_<_", "_<=_", "_>_", "_>=_", "_+_", "_-_", "_*_", "_/_", "_%_", "-_",
    "_?_:_", "@in", "size", "startsWith", "endsWith", "contains", "matches",
}  # fmt: skip
_AT = re.compile(r"<input>:(\d+):(\d+): (?:Syntax error: )?([^\n]*)")
_NUMBER = re.compile(r"(?<![\w.])\d+(?![\w.])")


class ConditionError(Exception):
    """An expression is none, or goes beyond the bounds.

    at    offset into the expression, and the width of what is wrong there
    """

    def __init__(self, message: str, hint: str | None = None, at: tuple[int, int] = (0, 1)) -> None:
        super().__init__(message)
        self.message, self.hint, self.at = message, hint, at


@dataclass(frozen=True, eq=False)
class Condition:
    """A compiled expression.

    text   as it was written
    names  the variables that it uses
    most   the largest whole number in it, 0 where there is none
    """

    text: str
    names: tuple[str, ...]
    most: int
    program: Any

    def holds(self, values: Mapping[str, Any]) -> bool | None:
        """Return whether it holds; None: it cannot be said, as a value has another type, or is too large."""
        try:
            answer = self.program.execute(values)
        except (TypeError, ValueError, ArithmeticError, RuntimeError, KeyError):
            return None
        return answer if isinstance(answer, bool) else None


def compiled(text: str, names: Collection[str], functions: Collection[str] = _FUNCTIONS) -> Condition:
    """Return a condition over variables of `names`. Raises ConditionError."""
    if len(text) > LENGTH_MAX:
        raise ConditionError(f"it is {len(text)} characters long, more than the limit of {LENGTH_MAX}")
    try:
        program = cel.compile(text)
    except (ValueError, RuntimeError) as error:
        raise _syntax(text, str(error)) from None
    used = program.variables()
    for name in used:
        if name not in names:
            near = nearest(name, names)
            hint = f"did you mean '{near}'?" if near else f"known here: {', '.join(sorted(names))}"
            raise ConditionError(f"there is no '{name}' here", hint, _word(text, name))
    for name in program.functions():
        if name == "@not_strictly_false":
            raise ConditionError("a condition may not loop", "write each case out, with && and ||", (0, len(text)))
        if name not in functions:
            raise ConditionError(
                f"a condition may not use '{name.strip('_@')}'",
                "comparisons, &&, ||, !, +, -, *, /, %, in, ?:, size, startsWith, endsWith, contains, matches",
                _word(text, name.strip("_@")),
            )
    return Condition(text, tuple(used), max(map(int, _NUMBER.findall(text)), default=0), program)


def _word(text: str, word: str) -> tuple[int, int]:
    found = re.search(rf"\b{re.escape(word)}\b", text)
    return (found.start(), len(word)) if found else (0, len(text))


def _syntax(text: str, message: str) -> ConditionError:
    match = _AT.search(message)
    if match is None:
        return ConditionError("it is no condition in CEL", "an example: count >= 5 && users >= 3")
    lines = text.split("\n")
    line = int(match[1]) - 1
    start = sum(len(one) + 1 for one in lines[:line]) + int(match[2]) - 1
    said = match[3].partition(", expecting")[0].partition(" expecting {")[0][:120]
    return ConditionError(f"it is no condition in CEL: {said}", "an example: count >= 5 && users >= 3", (start, 1))
