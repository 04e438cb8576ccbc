"""Piolet's own hooks: one file with one class each, which imports piolet.api only. catalogue.py names them."""
