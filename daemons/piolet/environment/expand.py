"""`${VAR}`, `${VAR:-default}` and `$${` in the strings of a definition file.

A pure function over a dictionary: no shell, no input or output. What it refuses: a variable that is
not defined and has no default, `${` without its `}`, any other form of `${…}`, a variable that is
not UTF-8, a result that is too long. A `$` that is not followed by `{` is just a `$`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from piolet.base.errors import EnvironmentFileError
from piolet.base.nearest import nearest

LENGTH_LIMIT = 96 * 1024
DEPTH_LIMIT = 8

_OF_THE_STEP = ("SLURM_", "PMI_", "PMIX_")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_BRACE = re.compile(r"\$\{|\}")


@dataclass(frozen=True)
class Expanded:
    """The text, and the names of the variables that were asked for, each once."""

    text: str
    names: tuple[str, ...] = ()


class ExpandError(EnvironmentFileError):
    """A `${…}` that cannot be expanded; `fragment` is the piece of the text that is at fault."""

    def __init__(self, message: str, hint: str | None, fragment: str) -> None:
        super().__init__(message, hint)
        self.fragment = fragment


def expand(text: str, variables: Mapping[str, str], quote: Callable[[str], str] = str) -> Expanded:
    """Return `text` with its variables replaced by their values, each passed through `quote`.

    The default after `:-` is taken when the variable is unset or empty, and may hold `${…}` itself.
    """
    names: dict[str, None] = {}
    result = _expand(text, variables, quote, names, 0)
    return Expanded(result, tuple(names))


def escape(text: str) -> str:
    """Return `text` so that `expand` gives it back."""
    return text.replace("${", "$${")


def _expand(
    text: str, variables: Mapping[str, str], quote: Callable[[str], str], names: dict[str, None], depth: int
) -> str:
    if depth > DEPTH_LIMIT:
        raise ExpandError(f"defaults are nested more than {DEPTH_LIMIT} deep", None, text[:40])
    parts: list[str] = []
    length = pos = 0
    while pos < len(text):
        start = text.find("${", pos)
        if start < 0:
            part, pos = text[pos:], len(text)
        elif start > pos and text[start - 1] == "$":
            part, pos = text[pos : start - 1] + "${", start + 2
        else:
            end = _closing(text, start)
            part = text[pos:start] + _replace(text[start : end + 1], variables, quote, names, depth)
            pos = end + 1
        parts.append(part)
        length += len(part)
        if length > LENGTH_LIMIT:
            raise ExpandError(f"the value is longer than {LENGTH_LIMIT} characters", None, text[:40])
    return "".join(parts)


def _closing(text: str, start: int) -> int:
    depth = 0
    for match in _BRACE.finditer(text, start):
        depth += 1 if match[0] == "${" else -1
        if depth == 0:
            return match.start()
    raise ExpandError("'${' has no '}'", "write '$${' for the characters themselves", "${")


def _replace(
    reference: str, variables: Mapping[str, str], quote: Callable[[str], str], names: dict[str, None], depth: int
) -> str:
    """Return what stands for `reference`, which is `${…}`."""
    body = reference[2:-1]
    match = _NAME.match(body)
    name = match[0] if match else ""
    rest = body[len(name) :]
    if not name or (rest and not rest.startswith(":-")):
        raise ExpandError(
            f"'{reference[:60]}' cannot be expanded",
            "the forms are ${NAME} and ${NAME:-default}; write '$${' for the characters themselves",
            reference,
        )
    names[name] = None
    value = variables.get(name)
    if rest and not value:
        return _expand(rest[2:], variables, quote, names, depth + 1)
    if value is None:
        near = None if name.startswith(_OF_THE_STEP) else nearest(name, variables)
        other = f"did you mean ${{{near}}}? " if near else ""
        if name.startswith(_OF_THE_STEP):
            other = "it is known when the job runs: use it in the job's script; "
        raise ExpandError(
            f"the variable '{name}' is not defined",
            f"{other}${{{name}:-}} is empty when it is not defined",
            reference,
        )
    if not is_utf8(value):
        raise ExpandError(f"the variable '{name}' is not UTF-8", None, reference)
    return quote(value)


def is_utf8(value: str) -> bool:
    """Return whether a variable's value, or its name, is text that a definition can hold."""
    # The interpreter carries undecodable bytes of the environment as lone surrogates.
    return value.isascii() or not any("\ud800" <= c <= "\udfff" for c in value)
