"""The existing name that is spelt most like a wrong one, for hints."""

from __future__ import annotations

from collections.abc import Iterable


def nearest(name: str, known: Iterable[str], *, fold: bool = True) -> str | None:
    """Return the one of `known` that is most like `name`, or None when none is close.

    Upper and lower case count as alike, unless `fold` is false.
    """
    import difflib  # only errors need it

    folded = {one.casefold() if fold else one: one for one in known}
    near = difflib.get_close_matches(name.casefold() if fold else name, folded, 1)
    return folded[near[0]] if near else None
