"""docs/events.md has the kinds that there are."""

from __future__ import annotations

from tools import kinds


def test_the_page_is_as_it_would_be_written_now() -> None:
    text = kinds.PAGE.read_text("utf-8")
    assert kinds.page(text) == text, "docs/events.md is out of date: make man"
