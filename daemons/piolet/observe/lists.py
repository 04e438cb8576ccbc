"""Lists of names in settings: "a,b", or "-c", which is all but that one."""

from __future__ import annotations


def listed(text: str) -> tuple[frozenset[str], frozenset[str]]:
    """Return the names that a list includes, and those that it leaves out."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    out = frozenset(word[1:].strip() for word in words if word.startswith("-"))
    return frozenset(word for word in words if not word.startswith("-")), out


def is_in(text: str, *names: str) -> bool:
    """Return whether a list says of something, which may have several names, that it is in."""
    wanted, left_out = listed(text)
    return not left_out & set(names) and (not wanted or bool(wanted & set(names)))
