"""Unit tests of piolet.container."""
