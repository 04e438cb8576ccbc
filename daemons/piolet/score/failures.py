"""What scoring raises."""

from __future__ import annotations

from piolet.base.errors import PioletError


class ScoreError(PioletError):
    """Something of `--score` could not be done; never a reason for a step to fail."""
