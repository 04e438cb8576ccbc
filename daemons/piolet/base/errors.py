"""What Piolet says when something fails.

Libraries raise a `PioletError`; only a `main` prints it and exits. The message is one sentence that
names what failed and where; the hint, when there is one, says what to do next.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Location:
    """A place in a text file that a user wrote.

    `line` and `column` count from 1. `text` is the whole line without its end; the caret that is
    printed below it spans `width` characters from `column`.
    """

    path: str
    line: int
    column: int
    text: str
    width: int = 1

    def render(self) -> str:
        """Return the line and a caret below it, indented by two spaces (tabs kept, so that they align)."""
        before = "".join("\t" if c == "\t" else " " for c in self.text[: self.column - 1])
        caret = "^" * max(1, min(self.width, len(self.text) - self.column + 1))
        return f"  {self.text}\n  {before}{caret}"


class PioletError(Exception):
    """The root of every error that Piolet raises on purpose; `others` are more of the same, told below it."""

    others: tuple[PioletError, ...] = ()

    def __init__(self, message: str, hint: str | None = None, location: Location | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.location = location

    def render(self) -> str:
        """Return the text that a user sees: place, sentence, source line with caret, hint. No line end."""
        lines: list[str] = []
        if self.location is None:
            lines.append(self.message)
        else:
            at = self.location
            lines.append(f"{at.path}:{at.line}:{at.column}: {self.message}")
            lines.append(at.render())
        if self.hint is not None:
            lines.append(f"hint: {self.hint}")
        return "\n".join(lines)


class UsageError(PioletError):
    """The command line was wrong."""


class ConfigError(PioletError):
    """`piolet.toml` was wrong."""


class EnvironmentFileError(PioletError):
    """An environment definition file (EDF) was wrong."""


class ImageError(PioletError):
    """An image could not be found, pulled, converted or used."""


class ContainerError(PioletError):
    """A container could not be built on this node."""


class SlurmError(PioletError):
    """Slurm could not be asked, or what it said was not understood."""


class VetError(PioletError):
    """A protocol was wrong, or a vetting could not be done."""


class ScoreError(PioletError):
    """Something of `--score` could not be done; never a reason for a step to fail."""


class ObserveError(PioletError):
    """Data of a step could not be read, written or found; never a reason for a step to fail."""


class EventError(PioletError):
    """An event is none, or a spool, a batch or the central service does not take it."""


class RuleError(PioletError):
    """A file of the central service's rules was wrong."""


class WireError(PioletError):
    """A peer sent something that is not the protocol."""
