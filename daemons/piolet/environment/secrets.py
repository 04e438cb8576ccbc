"""Which variables hold a secret, as far as a name tells: they are shown, and kept, by their names alone. Pure.

What is meant are the names that tools use: HF_TOKEN, WANDB_API_KEY, AWS_SECRET_ACCESS_KEY, DB_PASSWORD. A name that
only looks so costs its owner a value in a listing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

HIDDEN = "(not shown)"
_NAME = re.compile(
    r"(?:.*_)?(?:TOKEN|KEY|PASSWD)|.*(?:SECRET|PASSWORD|PASSPHRASE|CREDENTIAL).*", re.IGNORECASE | re.DOTALL
)
_ENTRY = re.compile(r"""\s*(?:export\s+|env\s*\.\s*)?["']?([^\s"'=.]+)["']?\s*=\s*(.*)""", re.DOTALL)


def is_secret(name: str) -> bool:
    """Return whether a variable of this name holds a secret."""
    return _NAME.fullmatch(name) is not None


def shown(variables: dict[str, str]) -> dict[str, str]:
    """Return the variables with HIDDEN in the place of secrets."""
    return {name: HIDDEN if is_secret(name) else value for name, value in variables.items()}


def any_secret(names: Iterable[str]) -> bool:
    """Return whether one of the names is a secret's."""
    return any(map(is_secret, names))


def line(text: str) -> str:
    """Return a line of a definition file as it may be shown: without the value of a secret that it sets."""
    match = _ENTRY.match(text)
    if match is None or not is_secret(match[1]) or not match[2]:
        return text
    return text[: match.start(2)] + HIDDEN
