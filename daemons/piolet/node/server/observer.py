"""The process of the account without privileges that records every step: its loop, and the journal it writes to."""

from __future__ import annotations

import importlib.metadata
import os
import signal
import socket
import time
from collections.abc import Mapping
from types import FrameType

from piolet.api import Place
from piolet.events.room import Bounds
from piolet.events.spool import Spool
from piolet.node.server.desks import writer_of
from piolet.node.settings import Settings
from piolet.observe.found import Finder
from piolet.observe.journal import ACKNOWLEDGED
from piolet.observe.moved import Mover
from piolet.observe.sampling import Observer
from piolet.observe.switches import Switches

_NODES_MIB = 2  # what is told of the journal itself
_NICE = 5


def observe(config: Settings, channel: socket.socket, held: Mapping[str, int]) -> None:
    """Record steps until this process is ended. `channel` leads to who may read /proc/PID/io."""
    own = config.observe
    stop = False

    def end(_number: int, _frame: FrameType | None) -> None:
        nonlocal stop
        stop = True

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(_NICE)
    about = {"piolet": importlib.metadata.version("piolet"), "interval": own.interval_s}
    bounds = Bounds(_NODES_MIB << 20, own.user_mib << 20, own.total_mib << 20)
    acknowledged = os.path.join(config.forward.state, ACKNOWLEDGED)
    spool = Spool(own.journal, writer_of(config.events.cluster), about, acknowledged, bounds, sync_users=True)
    place = Place(held=held, period=float(own.interval_s), ask=Mover(channel).ask)
    observer = Observer(spool, Finder().look, Switches(own).wanted, place, own.without)
    while not stop:
        time.sleep(observer.turn())
    observer.end()
    spool.close()
