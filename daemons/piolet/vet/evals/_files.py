"""Small files of /proc and /sys, read without trust in their being there. Runs under Python 3.8."""

from __future__ import annotations


def text(path: str) -> str | None:
    """Return the file's text without white space at its ends, or None when it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(1 << 20).strip()
    except OSError:
        return None


def number(path: str) -> int | None:
    """Return the whole number in a file, or None: there is no file, or no number in it."""
    found = text(path)
    try:
        return int(found) if found is not None else None
    except ValueError:
        return None
