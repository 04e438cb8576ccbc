"""What the server's loop serves besides steps with containers, and the one spool that all of it writes to."""

from __future__ import annotations

import importlib.metadata
import os
import selectors
import socket
import time

from piolet.events.envelope import USER
from piolet.events.room import Bounds
from piolet.events.spool import Spool
from piolet.events.stream import Writer
from piolet.node.server.eventdesk import EventDesk
from piolet.node.server.past import Past
from piolet.node.server.verdicts import Verdicts
from piolet.node.server.vetdesk import VetDesk
from piolet.node.settings import Settings
from piolet.steps import identity
from piolet.transport import wire

_REASON_MAX = 1000


class Desks:
    """The spool of events, and who fills it. `listener` and `zygote` are for vettings, `watcher` for hardware,
    `outcomes` for how tasks end.
    """

    def __init__(
        self, config: Settings, listener: socket.socket, zygote: socket.socket, watcher: socket.socket,
        outcomes: socket.socket,
    ) -> None:  # fmt: skip
        own = config.events
        bounds = Bounds(own.node_mib << 20, own.user_mib << 20, own.total_mib << 20)
        past = Past(config.vet.spool)
        about = {
            "piolet": importlib.metadata.version("piolet"), "kernel": os.uname().release,
            "booted": round(time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)),
        }  # fmt: skip
        acknowledged = os.path.join(config.forward.state, "acknowledged.json")
        self.spool = Spool(own.spool, writer_of(own.cluster), about, acknowledged, bounds, past)
        self._verdicts = Verdicts(self.spool, past)
        self._vetting = listener, zygote
        self._seen = watcher, outcomes

    def open(self, selector: selectors.BaseSelector) -> None:
        """Serve them in the loop of `selector`."""
        VetDesk(selector, *self._vetting, self._verdicts)
        EventDesk(selector, *self._seen, self.spool)

    def refused(self, start: wire.Start, image: str | None, reason: str) -> None:
        """Say that the container of a step could not be started."""
        body = {"reason": reason[:_REASON_MAX], **({"image": image} if image else {})}
        step = identity.word(start.step)
        self.spool.put("step.refused", USER, job=start.job or None, step=step, uid=start.uid, body=body)

    def close(self) -> None:
        """Write what is not written yet."""
        self.spool.close()


def writer_of(cluster: str) -> Writer:
    """Return this node as records name it."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        boot = file.read().strip()
    return Writer(cluster, socket.gethostname().partition(".")[0], boot)
