"""The error of vetting."""

from __future__ import annotations

from piolet.base.errors import PioletError


class VetError(PioletError):
    """A protocol was wrong, or a vetting could not be done."""
