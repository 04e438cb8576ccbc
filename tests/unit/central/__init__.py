"""Unit tests of piolet.central."""
