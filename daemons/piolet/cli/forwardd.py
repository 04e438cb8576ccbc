"""`piolet-forward`: the command line of a node's forwarder."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence

from piolet.base import logs
from piolet.base.errors import ConfigError
from piolet.cli import centralpeer, daemon
from piolet.events.reader import Reader
from piolet.forward.forwarder import Forwarder
from piolet.site.config import Config, load
from piolet.system import notify
from piolet.transport.asking import Asker

_LOG = logging.getLogger("piolet-forward")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of piolet-forward's command line."""
    return daemon.parser("piolet-forward", "Takes a node's events to the central service.")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the forwarder; returns its exit status."""
    arguments = build_parser().parse_args(argv)
    logs.configure("%(name)s: %(message)s")
    os.umask(0o022)
    return daemon.ended(_LOG, lambda: forward(make(load(arguments.config))))


def forward(forwarder: Forwarder) -> None:
    """Forward until a signal comes."""
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    notify.ready()
    while not ended.wait(forwarder.turn()):
        pass


def make(config: Config) -> Forwarder:
    """Return the forwarder that a configuration means. Raises ConfigError."""
    if os.geteuid() == 0:
        raise ConfigError("piolet-forward does not run as root", "start it by its unit, or as [forward] account")
    return Forwarder(
        Reader(config.events.spool), Asker(centralpeer.of_node(config)), config.forward.state, config.forward.every_s
    )


if __name__ == "__main__":
    sys.exit(main())
