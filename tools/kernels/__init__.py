"""Tests on other kernels: `make test-kernels`."""
