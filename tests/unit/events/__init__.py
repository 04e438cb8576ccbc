"""Unit tests of piolet.events."""
