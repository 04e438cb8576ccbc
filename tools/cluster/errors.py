"""What the cluster tool raises on purpose; only its `main` prints it."""

from __future__ import annotations

from pathlib import Path

TAIL_LINES = 15
TAIL_BYTES = 64 * 1024


class ClusterError(Exception):
    """One sentence that says what failed and where, a hint, and the log whose end explains it."""

    def __init__(self, message: str, hint: str | None = None, log: Path | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.log = log

    def render(self) -> str:
        """Return the text that a user sees, the last lines of the log included. No line end."""
        lines = [self.message]
        if self.log is not None:
            lines += [f"the last lines of {self.log}:", *(f"  | {line}" for line in tail(self.log))]
        if self.hint is not None:
            lines.append(f"hint: {self.hint}")
        return "\n".join(lines)


def tail(path: Path, count: int = TAIL_LINES) -> list[str]:
    """Return the last `count` lines of a file that may be absent, huge or not text."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ["(there is no such file)"]
    lines = text.splitlines()[-count:]
    return lines or ["(it is empty)"]
