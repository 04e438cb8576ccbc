"""`piolet-forward`: the command line of a node's forwarder.

It takes two spools along, each in a thread of its own: events, and the figures of steps where the node records them.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence

from piolet.base import logs
from piolet.base.errors import ConfigError
from piolet.cli import centralpeer, daemon
from piolet.events.reader import Reader
from piolet.forward.forwarder import Forwarder, Kind
from piolet.observe.journal import ACKNOWLEDGED
from piolet.observe.settings import is_on
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
    return daemon.ended(_LOG, lambda: forward(*make(load(arguments.config))))


def forward(*forwarders: Forwarder) -> None:
    """Forward until a signal comes."""
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    notify.ready()
    first, *others = forwarders
    for one in others:  # what is being asked when a signal comes is not waited for: nothing is lost by that
        threading.Thread(target=_forward, args=(one, ended), name="frames", daemon=True).start()
    _forward(first, ended)


def _forward(forwarder: Forwarder, ended: threading.Event) -> None:
    while not ended.wait(forwarder.turn()):
        pass


def make(config: Config) -> list[Forwarder]:
    """Return the forwarders that a configuration means. Raises ConfigError."""
    if os.geteuid() == 0:
        raise ConfigError("piolet-forward does not run as root", "start it by its unit, or as [forward] account")
    peer, forward = centralpeer.of_node(config), config.forward
    events = Reader(config.events.spool)
    made = [Forwarder(events, Asker(peer), forward.state, forward.every_s, beats_s=forward.beats_s)]
    if is_on(config.observe.steps, config.central.url):
        journal = Reader(config.observe.journal)
        made.append(Forwarder(journal, Asker(peer), forward.state, forward.frames_s, kind=frames()))
    return made


def frames() -> Kind:
    """Return how figures of steps are forwarded: with how long this node has been up, which is a clock nobody sets."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            boot = file.read().strip()
    except OSError:  # the service compares the nodes' clocks with its own then
        return Kind("/v1/frames", ACKNOWLEDGED)
    return Kind("/v1/frames", ACKNOWLEDGED, None, lambda: {"up": f"{_up():.3f}", "boot": boot})


def _up() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


if __name__ == "__main__":
    sys.exit(main())
