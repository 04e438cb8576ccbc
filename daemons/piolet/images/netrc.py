"""enroot's file of credentials, `~/.config/enroot/.credentials`: lines of netrc, read and never evaluated. Pure.

enroot (src/common.sh, evalnetrc) has a shell evaluate a password that begins with `$`. Here `$NAME` and `${NAME}` are
variables of the caller's; a password that is a command, `$(…)`, is told of and not run. A login is taken as it is:
NGC's is called `$oauthtoken`. enroot writes Docker Hub's machine as auth.docker.io, and machines without a port.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

_VARIABLE = re.compile(r"\$(?:([A-Za-z_][A-Za-z0-9_]*)|\{([A-Za-z_][A-Za-z0-9_]*)\})")


@dataclass(frozen=True)
class Line:
    """The credentials of one machine. `refusal` is a clause that says why they cannot be used, or ''."""

    machine: str
    login: str
    password: str = ""
    refusal: str = ""


def lines(text: str, variables: Mapping[str, str]) -> Iterator[Line]:
    """Yield what stands in a netrc file; what is neither a machine nor complete is passed over."""
    words = [word for line in text.splitlines() if not line.lstrip().startswith("#") for word in _words(line)]
    starts = [at for at, word in enumerate(words) if word == "machine"]
    for start, end in itertools.pairwise([*starts, len(words)]):
        entry = words[start:end]
        if len(entry) < 2:
            continue
        values = dict(zip(entry[2::2], entry[3::2], strict=False))
        if "login" in values and "password" in values:
            yield _line(entry[1], values["login"], values["password"], variables)


def _words(line: str) -> list[str]:
    """Return the words of a line; a command, `$(…)`, is one word with all that stands in it."""
    before, command, rest = line.partition("$(")
    return [*before.split(), command + rest.strip()] if command else before.split()


def _line(machine: str, login: str, password: str, variables: Mapping[str, str]) -> Line:
    if not password.startswith("$"):
        return Line(machine, login, password)
    match = _VARIABLE.fullmatch(password)
    if match is None:
        return Line(machine, login, refusal="its password is a command, which Piolet does not run")
    name = match[1] or match[2]
    value = variables.get(name)
    return Line(machine, login, value) if value else Line(machine, login, refusal=f"the variable {name} is not set")
