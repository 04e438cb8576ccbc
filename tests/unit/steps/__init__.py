"""Unit tests of piolet.steps."""
