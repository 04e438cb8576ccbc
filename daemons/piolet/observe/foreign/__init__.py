"""Figures that other monitors recorded, read into the layout: a module for each format, whose reader is `read`.

Files are read with the rights of who calls, in bounded memory, by our own code. Nothing is guessed: what a file
does not tell is missing, and `quality` says so.
"""
