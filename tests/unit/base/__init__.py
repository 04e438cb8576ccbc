"""Unit tests of piolet.base."""
