"""Unit tests of piolet.site."""
