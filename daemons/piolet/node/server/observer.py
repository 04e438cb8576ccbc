"""The process of the account without privileges that records every step: its loop, and the journal it writes to."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import signal
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType

from piolet.api import Place
from piolet.base.errors import PioletError
from piolet.events.room import Bounds
from piolet.events.spool import Spool
from piolet.node.server.desks import writer_of
from piolet.node.settings import Settings
from piolet.observe import sampling
from piolet.observe.found import Finder
from piolet.observe.journal import ACKNOWLEDGED
from piolet.observe.moved import Movers
from piolet.observe.sampling import Observer
from piolet.observe.switches import Switches

_log = logging.getLogger("pioletd.observe")

_NODES_MIB = 2  # what is told of the journal itself


def observe(config: Settings, channel: socket.socket, held: Mapping[str, int]) -> None:
    """Record steps until this process is ended. `channel` leads to who starts processes that are users."""
    own = config.observe
    stop = False

    def end(_number: int, _frame: FrameType | None) -> None:
        nonlocal stop
        stop = True

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    about = {"piolet": importlib.metadata.version("piolet"), "interval": own.interval_s}
    bounds = Bounds(_NODES_MIB << 20, own.user_mib << 20, own.total_mib << 20)
    acknowledged = os.path.join(config.forward.state, ACKNOWLEDGED)
    spool = Spool(own.journal, writer_of(config.events.cluster), about, acknowledged, bounds, sync_users=True)
    place = Place(held=held, period=float(own.interval_s))
    writer = _with_metrics(config, spool)
    observer = Observer(writer, Finder().look, Switches(own).wanted, place, own.without, Movers(channel))
    while not stop:
        time.sleep(observer.turn())
    observer.end()
    spool.close()


def _with_metrics(config: Settings, spool: Spool) -> sampling.Spool:
    """Return where frames go: to the spool, and before that to who serves them to Prometheus, if anybody does."""
    own = config.observe
    if not own.prometheus:
        return spool
    from piolet.observe.metrics import Figures, serve

    figures = Figures(spool, socket.gethostname().partition(".")[0])
    try:
        token = Path(own.prometheus_token).read_text("ascii").strip() if own.prometheus_token else ""
        if own.prometheus_token and not token:
            raise PioletError(f"{own.prometheus_token} is empty")
        serve(figures, own.prometheus, token)
    except PioletError as error:
        _log.error("%s", error.message)
    except (OSError, ValueError) as error:
        _log.error("no figures for Prometheus: %s cannot be read: %s", own.prometheus_token, error)
    return figures
