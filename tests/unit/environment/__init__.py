"""Unit tests of piolet.environment."""
