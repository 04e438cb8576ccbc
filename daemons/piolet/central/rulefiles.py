"""Reads the file of rules that the service judges by, or those that Piolet comes with."""

from __future__ import annotations

import importlib.resources

from piolet.base.errors import RuleError
from piolet.base.files import NotRegularError, read_small
from piolet.central.rules.language import SIZE_MAX, Rule, parse


def read(path: str = "") -> tuple[Rule, ...]:
    """Return the rules of the file at `path`; '': those that Piolet comes with. Raises RuleError."""
    if not path:
        ours = importlib.resources.files("piolet.central.rules").joinpath("catalogue.toml")
        return parse("catalogue.toml", ours.read_text(encoding="utf-8"))
    try:
        data, _ = read_small(path, SIZE_MAX)
        return parse(path, data.decode("utf-8"))
    except NotRegularError:
        raise RuleError(f"{path} is not a regular file") from None
    except OSError as error:
        raise RuleError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise RuleError(f"{path} is not UTF-8", "a file of rules is TOML, which is text in UTF-8") from None
