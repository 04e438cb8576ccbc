"""Piolet on aarch64, emulated: `make test-arm64`."""
