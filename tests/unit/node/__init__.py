"""Unit tests of piolet.node."""
