"""How the `piolet` command begins: Ctrl-C while its modules are loaded is no traceback; a terminal that lacks a
character, and an output that is closed, are no errors."""

from __future__ import annotations

import io
import os
import signal
import sys


def main() -> int:
    """Run the command and return its exit status."""
    heard = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if heard:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # the caller has closed it
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - until the end
    for stream in (sys.stdout, sys.stderr):
        # Other handlers are those of people who chose one, and of locales in which every byte can be written.
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "backslashreplace"):
            stream.reconfigure(errors="replace")
    from piolet.cli import main as command

    if heard:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return command.main()
