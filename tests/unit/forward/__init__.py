"""Unit tests of piolet.forward."""
