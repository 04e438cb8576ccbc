"""Unit tests of piolet.images."""
