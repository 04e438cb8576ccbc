"""Tests of the image service with a registry, a store and hostile archives."""
