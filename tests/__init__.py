"""Tests, by what they need: nothing (unit, structure, wire), a store, a node, or a cluster."""
