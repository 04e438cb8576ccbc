"""Unit tests of piolet.submission."""
