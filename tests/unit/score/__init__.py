"""Unit tests of piolet.score."""
