"""Unit tests of piolet.transport."""
