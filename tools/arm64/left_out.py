"""Tests that qemu-user cannot run, each with its reason. They run on x86-64, and what they test in the guest."""

from __future__ import annotations

REASONS: dict[str, str] = {}
