"""The process that keeps the data of steps: `python -m piolet.central.keeper PID`; PID is the service.

It reads its settings from its standard input, as the address of the store may have a password. It ends with the
service, and works while nothing else does.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path

from piolet.base import logs
from piolet.base.errors import PioletError
from piolet.central.stepevents import StepEvents
from piolet.central.store.database import connect
from piolet.central.store.reader import Reader
from piolet.observe.keeping import LOOK_S, Keeper
from piolet.observe.keepsettings import KeepConfig
from piolet.system import linux

_LOG = logging.getLogger("piolet-central")
_NICE = 10


def main(words: list[str]) -> int:
    """Keep until the service ends; returns the exit status."""
    logs.configure("%(name)s: %(message)s")
    linux.set_name("piolet-steps")
    linux.die_with_parent(signal.SIGKILL)
    os.umask(0o077)
    with contextlib.suppress(OSError):
        os.nice(_NICE)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    said = json.load(sys.stdin)
    config = KeepConfig(**said["keep"])
    try:
        keeper = Keeper(Path(config.directory), config, time.time, _happened(said["store"], said["cluster"]))
        # A service that was killed before this process asked to die with it is its parent no more.
        while os.getppid() == int(words[0]) and not ended.wait(LOOK_S):
            keeper.turn()
    except PioletError as error:
        _LOG.error("%s", error.message)
        return 1
    return 0


def _happened(store: str, cluster: str) -> StepEvents | None:
    """Return what tells of events; None: there is no store."""
    return StepEvents(lambda: Reader(connect(store), cluster)) if store else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
