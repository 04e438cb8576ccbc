"""Steps of an earlier daemon: their containers run on, and are emptied when their slurmstepd has ended."""

from __future__ import annotations

import logging
import os
import selectors

from piolet.container import labels
from piolet.node.root.attachments import Attachments
from piolet.node.root.endings import Endings
from piolet.node.root.state import Known, StepFiles
from piolet.steps import identity, slurmstepd

_log = logging.getLogger("pioletd.monitor")


def take_up(
    files: StepFiles, endings: Endings, attachments: Attachments, place: str, selector: selectors.BaseSelector
) -> None:
    """Watch every step that was noted, or whose container is found, in the loop of `selector`."""
    running = slurmstepd.running()
    prefix = labels.label("", place)
    steps = {known.step: known for known in files.read()}
    for label in labels.in_containers():
        step = label.removeprefix(prefix)
        # A user can give a mount of their own any name: what is not a step's is nothing to us.
        if label.startswith(prefix) and identity.is_name(step):
            steps.setdefault(step, Known(step, running.get(step, 0), None))
    for step, one in steps.items():
        peer = one.peer if one.alive() else running.get(step, 0)
        try:
            pidfd = os.pidfd_open(peer) if peer else -1
        except OSError:
            pidfd = -1
        if pidfd < 0:
            endings.empty_labelled(step, labels.label(step, place))
            continue
        _log.info("step %s goes on; it is watched by its slurmstepd, process %d", step, peer)

        attachments.know(one)

        def on_end(step: str = step, pidfd: int = pidfd) -> None:
            selector.unregister(pidfd)
            os.close(pidfd)
            attachments.over(step)
            endings.empty_labelled(step, labels.label(step, place))

        selector.register(pidfd, selectors.EVENT_READ, on_end)
