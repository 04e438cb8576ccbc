"""Unit tests of piolet.system."""
