"""Tests that `make test-kernels` runs on other kernels."""
