"""Unit tests of piolet.doctor."""
