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
    # Escaped, as on stderr and in TOML. Other handlers are those of people who chose one.
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")
    from piolet.cli import main as command

    if heard:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return command.main()
