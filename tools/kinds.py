"""Writes the table of kinds at the end of docs/events.md: `python -m tools.kinds`."""

from __future__ import annotations

from pathlib import Path

from piolet.events.kinds import KINDS

PAGE = Path(__file__).resolve().parents[1] / "docs" / "events.md"
HEADING = "## Kinds\n"


def table() -> str:
    """Return the section, made of piolet.events.kinds."""
    lines = [HEADING, "Made by `python -m tools.kinds`. Keys are those of `body`; a record may have fewer.\n"]
    for kind in KINDS.values():
        lines.append(f"### {kind.name}\n")
        lines.append(f"{kind.about[0].upper()}{kind.about[1:]}. Source: {', '.join(kind.sources)}.\n")
        lines += ["| key | what it says |", "|---|---|"]
        lines += [f"| `{key}` | {text.replace('|', ', ')} |" for key, text in kind.body.items()]
        lines.append("")
    return "\n".join(lines)


def page(text: str) -> str:
    """Return the page with its last section as it would be written now."""
    return text.partition(HEADING)[0] + table()


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text("utf-8")), "utf-8")
