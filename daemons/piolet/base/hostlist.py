"""Slurm's lists of hosts: 'gpu[001-003,7],login' is gpu001, gpu002, gpu003, gpu7, login.

It refuses brackets that do not match, ranges that run backwards, and lists that are absurdly long.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence

from piolet.base.errors import SlurmError

_HOSTS_MAX = 100_000
_NUMBERED = re.compile(r"(.*?)(\d{1,9})(\D*)", re.ASCII | re.DOTALL)
_RANGE = re.compile(r"(\d+)(?:-(\d+))?", re.ASCII)


def expand(text: str) -> list[str]:
    """Return the hosts of the list in order. Raises SlurmError."""
    hosts: list[str] = []
    for word in _words(text):
        pieces = re.split(r"\[([^\[\]]*)\]", word)
        if any(character in piece for piece in pieces[::2] for character in "[]"):
            raise SlurmError(f"'{text[:200]}' is no list of hosts: its brackets do not match")
        choices = [_numbers(piece, text) if at % 2 else [piece] for at, piece in enumerate(pieces)]
        for combination in itertools.product(*choices):
            hosts.append("".join(combination))
            if len(hosts) > _HOSTS_MAX:
                raise SlurmError(f"the list of hosts '{text[:80]}…' is longer than {_HOSTS_MAX}")
    return hosts


def _words(text: str) -> list[str]:
    """Split at the commas that are not in brackets."""
    words, depth, start = [], 0, 0
    for at, character in enumerate(text):
        depth += (character == "[") - (character == "]")
        if character == "," and depth == 0:
            words.append(text[start:at])
            start = at + 1
    words.append(text[start:])
    return [word.strip() for word in words if word.strip()]


def _numbers(piece: str, text: str) -> list[str]:
    found: list[str] = []
    for one in piece.split(","):
        match = _RANGE.fullmatch(one.strip())
        if match is None:
            raise SlurmError(f"'{text[:200]}' is no list of hosts: '{one[:40]}' is no range of numbers")
        first, last = match[1], match[2] or match[1]
        if int(last) < int(first) or int(last) - int(first) > _HOSTS_MAX:
            raise SlurmError(f"'{text[:200]}' is no list of hosts: the range '{one[:40]}' is impossible")
        found += [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    return found


def compress(hosts: Iterable[str]) -> str:
    """Return the hosts as Slurm writes them, each once: 'gpu[001-003,7],login'; `expand` gives them back.

    Those of one name stand together, in their order.
    """
    groups: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for host in dict.fromkeys(hosts):
        match = _NUMBERED.fullmatch(host)
        prefix, number, suffix = match.groups() if match else (host, "", "")
        runs = groups.setdefault((prefix, suffix) if number else (host, ""), [])
        if runs and number and str(int(runs[-1][1]) + 1).zfill(len(runs[-1][0])) == number:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return ",".join(_group(prefix, suffix, runs) for (prefix, suffix), runs in groups.items())


def _group(prefix: str, suffix: str, runs: Sequence[tuple[str, str]]) -> str:
    if len(runs) == 1 and runs[0][0] == runs[0][1]:
        return prefix + runs[0][0] + suffix
    inside = ",".join(first if first == last else f"{first}-{last}" for first, last in runs)
    return f"{prefix}[{inside}]{suffix}"
