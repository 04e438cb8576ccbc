"""Unit tests of piolet.cli."""
