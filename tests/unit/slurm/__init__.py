"""Unit tests of piolet.vet."""
