"""Tests of what goes over sockets, from C and from Python."""
