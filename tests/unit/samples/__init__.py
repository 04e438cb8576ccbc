"""Unit tests of piolet.samples."""
