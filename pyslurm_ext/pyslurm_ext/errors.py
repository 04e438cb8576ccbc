"""What goes wrong between us and Slurm."""

from __future__ import annotations


class SlurmError(Exception):
    """Slurm refused, or cannot be reached.

    code      Slurm's error number (slurm_errno.h), 0 where there is none
    message   one sentence: what failed, and why in Slurm's words
    hint      how to mend it, '' where nothing is known
    """

    def __init__(self, message: str, code: int = 0, hint: str = "") -> None:
        super().__init__(message)
        self.message, self.code, self.hint = message, code, hint

    def __str__(self) -> str:
        return f"{self.message}\nhint: {self.hint}" if self.hint else self.message
